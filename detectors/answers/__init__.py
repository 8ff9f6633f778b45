"""Detectors of whole answers: compared with a clean decode, by their acceptance of drafts, by what they leak."""
