"""What everybody stands on: clock, randomness, probes, errors, strict reading of files. It imports nothing of repro."""
