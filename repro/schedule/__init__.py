"""A schedule as a value: who acts next, and the token that brings a run back. Runs and searches use it."""
