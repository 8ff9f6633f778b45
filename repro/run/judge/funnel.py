"""How often each cause was found, and how soon: pure sums over the detectors' answers."""

from collections.abc import Iterator, Sequence

from detectors.base import Finding, Verdict
from repro.record.requests import RequestRecord
from repro.record.verdict import FirstFinding


def signature_counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return how often each cause was found."""
    counts: dict[str, int] = {}
    for finding in _findings(verdicts):
        counts[finding.signature] = counts.get(finding.signature, 0) + finding.count
    return counts


def first_findings(verdicts: Sequence[Verdict], records: Sequence[RequestRecord]) -> dict[str, FirstFinding]:
    """Return when each layer found something first, and how many requests had been sent by then."""
    finished_us = {record.request: record.finished_us for record in records}
    earliest: dict[str, float] = {}
    for finding in _findings(verdicts):
        at_us = finding.at_us or finished_us.get(finding.request, 0.0)
        earliest[finding.layer] = min(at_us, earliest.get(finding.layer, at_us))
    return {
        layer: FirstFinding(sum(0 <= record.sent_us <= at_us for record in records), round(at_us / 1e6, 6))
        for layer, at_us in earliest.items()
    }


def _findings(verdicts: Sequence[Verdict]) -> Iterator[Finding]:
    return (finding for verdict in verdicts for finding in verdict.findings)
