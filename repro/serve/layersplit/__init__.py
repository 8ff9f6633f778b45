"""LayerSplit: ranks that share a prompt's tokens, and keep each the KV of some layers only.

scheduler (rank 0's process) ── step, load, write ──> every rank
rank r   compute     [ project ]        [ index ]          [ attend ]  [ feed forward ]
         collective  [ index keys ] [ new rows ] [ latents ]        <- of the layer, from its owner
"""
