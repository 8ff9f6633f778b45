"""Faults and defects of a run, as plain data and as what carries them out; `repro.serve` knows nothing of them.

A fault goes from a scenario file (`plan`, `kinds`, `points`) to the `injector`, which answers the stack's probe
points. Corrupting faults go to `corrupt`, `damage` and `aftermath`. `defects` replaces guards of the stack.
"""
