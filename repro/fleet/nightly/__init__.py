"""The nightly stress job: suites, their runs, the statistics over them, the comparison of nights. For `repro.cli`."""
