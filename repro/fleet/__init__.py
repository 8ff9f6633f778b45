"""Many runs: campaigns over seeds, experiments in steps, and nights with a verdict. Only `repro.cli` may enter."""
