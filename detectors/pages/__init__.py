"""Detectors of events: orders, owners and stamps of cache pages."""
