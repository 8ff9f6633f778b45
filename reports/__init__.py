"""What people read of a run, a night and an experiment: pages without a network, and words for a terminal.

The CLI and `repro.fleet` enter. Reports judge nothing: they read what the run folder holds.
"""
