"""From what was recorded to the verdict: detectors' answers, marks on requests, sums, the word; for `run` alone.

recorder ─> marks, compare (bundled stack) or asked_again (a server) ─> verdict
"""
