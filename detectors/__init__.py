"""Pure functions of what was recorded, each with one of four answers; `registry` lists them.

The recorder and the judge of `repro.run`, `repro detect` and the reports enter by `base`, `evidence` and `registry`.
"""
