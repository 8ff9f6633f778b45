"""Search for races: hunt schedules, reproduce and shrink findings, mutate the stack. Only `repro.cli` may enter."""
