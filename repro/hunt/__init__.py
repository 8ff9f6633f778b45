"""Searches the schedules of a scenario for races that nobody pointed it at."""
