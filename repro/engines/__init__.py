"""Real engines in the place of the bundled stack, one room each. The targets of `repro.run` and the CLI enter."""
