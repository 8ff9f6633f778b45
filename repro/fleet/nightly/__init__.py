"""The nightly stress job: suites, their runs, the statistics over them, and the comparison of two nights."""
