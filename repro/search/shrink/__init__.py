"""Makes a finding small: less load, fewer faults, fewer deviations, the same cause. Only `repro.cli` may enter."""
