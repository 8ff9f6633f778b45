"""Experiments: scenarios in steps that are told side by side, such as the five of `pd_scaling_pain`."""
