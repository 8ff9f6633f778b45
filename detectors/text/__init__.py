"""Detectors that read an answer while it arrives: garble, loops, rare tokens."""
