"""From rows and gates to the verdict of a night. Where several hold: failed, anomaly, vacuous, inconclusive, clean."""

from collections.abc import Sequence

from reports.night.night import CaseRow, Comparison, FindingRow, GateRow
from reports.rates import Rate, interval_text, share_text
from repro.base.verdict_word import VerdictWord
from repro.fleet.nightly.suite import Gates
from repro.fleet.verdict import verdict_of

VACUOUS = "vacuous runs"


def gate_rows(
    gates: Gates, cases: Sequence[CaseRow], findings: Sequence[FindingRow], rate: Rate, comparison: Comparison | None
) -> tuple[GateRow, ...]:
    """Return the suite's gates; a baseline is one more."""
    rows = [_vacuous(gates.vacuous_runs_max, cases)]
    if gates.new_findings_max is not None:
        new = sum(finding.new for finding in findings)
        rows.append(
            GateRow("new findings", f"at most {gates.new_findings_max}", f"{new}", new <= gates.new_findings_max)
        )
    if gates.rate_high_max is not None:
        rows.append(_rate(gates.rate_high_max, rate))
    if gates.throughput_ratio_min is not None:
        rows.append(_throughput(gates.throughput_ratio_min, cases))
    if comparison is not None:
        met = {"worse": False, "inconclusive": None}.get(comparison.answer, True)
        rows.append(GateRow("baseline", "not worse", comparison.answer, met))
    return tuple(rows)


def verdict(
    cases: Sequence[CaseRow], gates: Sequence[GateRow], missing: Sequence[str], lost: str
) -> tuple[VerdictWord, tuple[str, ...]]:
    """Return the verdict's word and the sentences that led to it.

    `missing` says what was not run. `lost`: the target went away; then what ran into it is unknown, not failed.
    """
    died = [f"{row.name}: {reason}" for row in cases for reason in row.died]
    wrong = [f"{row.name}: {row.told}" for row in cases if row.met is False]
    failed = [gate for gate in gates if gate.met is False]
    wrong += [_sentence(gate) for gate in failed if gate.name != VACUOUS]
    empty = [_sentence(gate) for gate in failed if gate.name == VACUOUS]
    unknown = [f"{row.name}: {row.told}" for row in cases if row.met is None]
    unknown += [_sentence(gate) for gate in gates if gate.met is None]
    rest = [*missing, *unknown]
    measured = any(set(row.verdicts) - {"died", "failed"} for row in cases)
    if lost and measured:
        rest, died = [lost, *rest], []
    elif lost:
        died = [lost]
    return verdict_of(
        {
            VerdictWord.FAILED: died,
            VerdictWord.ANOMALY: wrong,
            VerdictWord.VACUOUS: empty,
            VerdictWord.INCONCLUSIVE: rest,
        }
    )


def _sentence(gate: GateRow) -> str:
    return f"gate {gate.name}: {gate.value}; {gate.limit}"


def _vacuous(most: int, cases: Sequence[CaseRow]) -> GateRow:
    count = sum(row.verdicts.get("vacuous", 0) for row in cases)
    return GateRow(VACUOUS, f"at most {most}", str(count), count <= most)


def _rate(most: float, rate: Rate) -> GateRow:
    """Return the gate of the rate: passed below the limit with its interval, failed above, unknown in between."""
    met = True if rate.session_high <= most else False if rate.session_low > most else None
    value = f"{share_text(rate.share)}, over sessions {interval_text(rate.session_low, rate.session_high)}"
    return GateRow("rate", f"upper end at most {share_text(most)}", value, met)


def _throughput(least: float, cases: Sequence[CaseRow]) -> GateRow:
    """Return tokens per second against the reference, over the cases that both sides ran in this job."""
    speeds = {(row.case, row.role): row.tokens_per_s for row in cases}
    ratios = [
        silent / reference
        for (case, role), reference in speeds.items()
        if role == "reference" and reference and (silent := speeds.get((case, "silent")))
    ]
    limit = f"at least {least:g} of the reference in every case"
    if not ratios:
        return GateRow("throughput", limit, "no reference was measured; give one with --reference", None)
    return GateRow("throughput", limit, f"{min(ratios):.3f} in the slowest case", min(ratios) >= least)
