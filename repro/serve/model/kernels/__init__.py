"""The forward's arithmetic, compiled by numba: each kernel computes rows [first, last) of one leaf function.

Read in the order `vectors.py` (what a value's bits are), `rows.py` (what all share), then a kernel. Importing one
compiles it or loads it from the user's cache folder.
"""
