"""A whole SGLang server with our plugin in it: launched, proven, and perturbed while it runs.

    launch (this process) ─ loopback ─> plugin (the server's scheduler process) ─> SGLang's HiCache controller

What is in `absent`, `plugin`, `threads` and `switches` runs inside the server's processes.
"""
