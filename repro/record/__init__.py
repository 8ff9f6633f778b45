"""What a run leaves: events and their log, requests, the verdict, the run folder, and a read-only view of it.

Everybody above `serve` may enter; the stack itself records nothing, it fires probes (`repro.base.probe`).
"""
