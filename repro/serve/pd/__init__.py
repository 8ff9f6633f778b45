"""Prefill/decode disaggregation: a router, prefill workers, decode workers, one-sided transfers between."""
