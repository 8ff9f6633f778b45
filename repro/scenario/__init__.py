"""Scenarios: what to load, what to break, what to expect. Runs, searches, fleets and the command line read them."""
