"""Sums over findings and faults for the verdict; `record/counts.py` has those over requests, the funnel among them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec.structs import asdict, replace

from detectors.base import Finding
from repro.fault.aftermath import Corruptions
from repro.fault.injector import FaultCounts
from repro.record.requests import RequestRecord
from repro.record.verdict import FaultOutcome, FirstFinding


def fault_outcomes(
    counts: Mapping[str, FaultCounts], corruptions: Mapping[str, Corruptions]
) -> dict[str, FaultOutcome]:
    """Return what became of each fault; `corruptions` has those that changed bytes."""
    outcomes = {}
    for name, count in counts.items():
        outcome = FaultOutcome(count.armed, count.reached, count.fired, count.reordered)
        outcomes[name] = replace(outcome, **asdict(corruptions[name])) if name in corruptions else outcome
    return outcomes


def signature_counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Return how often each cause was found."""
    counts = Counter[str]()
    for finding in findings:
        counts[finding.signature] += finding.count
    return dict(counts)


def first_findings(findings: Sequence[Finding], records: Sequence[RequestRecord]) -> dict[str, FirstFinding]:
    """Return when each layer found something first, and how many requests had been sent by then."""
    finished_us = {record.request: record.finished_us for record in records}
    earliest: dict[str, float] = {}
    for finding in findings:
        at_us = finding.at_us or finished_us.get(finding.request, 0.0)
        earliest[finding.layer] = min(at_us, earliest.get(finding.layer, at_us))
    return {
        layer: FirstFinding(sum(0 <= record.sent_us <= at_us for record in records), round(at_us / 1e6, 6))
        for layer, at_us in earliest.items()
    }
