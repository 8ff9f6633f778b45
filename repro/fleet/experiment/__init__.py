"""Experiments: scenarios in steps that are compared, such as the five of `pd_scaling_pain`. Entered by `repro.cli`."""
