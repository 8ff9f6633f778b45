"""What a run drives: the bundled stack, SGLang's classes, or a server at a URL, behind one protocol; for `run` alone.

`choose` picks the target of a run. Only `tools.calibrate` asks a server directly (`server`).
"""
