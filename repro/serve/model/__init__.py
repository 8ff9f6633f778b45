"""GLM-5's forward on CPU tensors: pure functions on rows, slots and pages.

Read in the order `glm5.py` (the leaf functions a step calls), `context.py` (what they hand to each other), `kernels`
(what they compute); `config.py`, `weights.py` and `panels.py` read a checkpoint folder.
"""
