"""Compares two nights, or two runs: worse, same, better, or inconclusive."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from reports.night.night import Comparison, PastNight
from reports.rates import rate_of, share_text
from repro.base.errors import UsageError
from repro.base.verdict_word import VerdictWord
from repro.fleet.nightly.history import FILE, read_night
from repro.fleet.nightly.statistics import SIGNIFICANT, effect_interval, exact_test, power
from repro.record.counts import session_hits
from repro.record.view import open_run

WRONG = "went wrong"
SAME_WITHIN = 0.01  # two rates are the same when the interval of their difference lies within
FALL_TO = 0.3  # the power is that of seeing the rate fall to this share

Sessions = tuple[tuple[int, int], ...]


class Side(msgspec.Struct, frozen=True):
    """One side of a comparison; `rows` are its sessions by case."""

    name: str
    rows: dict[str, Sessions]
    signatures: frozenset[str]
    digest: str = ""  # the hash of all that counts, where it is known

    def sessions(self, cases: Iterable[str]) -> Sessions:
        """Return the sessions of these cases."""
        return tuple(session for case in cases for session in self.rows.get(case, ()))


def side_of_night(night: PastNight, name: str) -> Side:
    """Return the silent cases of a night as a side."""
    rows = {row.case: row.sessions for row in night.cases if row.role == "silent"}
    return Side(name, rows, frozenset(finding.signature for finding in night.findings), night.digest)


def read_side(path: Path) -> Side:
    """Return a side from the folder of a night or of a run. Raises UsageError for what is neither."""
    if path.is_file() or (path / FILE).exists() or not (path / "run.json").exists():
        return side_of_night(read_night(path), str(path))
    run = open_run(path)
    if run.verdict is None:
        raise UsageError(f"{path}: this run came to no verdict; compare runs that ended")
    hits = session_hits(run.requests, blind=run.verdict.detectors.get("canary") == "not_applicable")
    return Side(str(path), {run.meta.scenario: hits}, frozenset(run.verdict.signatures))


def compare(before: Side, after: Side, *, same_within: float = SAME_WITHIN) -> Comparison:
    """Return what differs in the cases that both have. Raises UsageError where they have none in common."""
    cases = [case for case in after.rows if case in before.rows]
    if not cases:
        cases_of = "; ".join(f"{side.name} has {', '.join(side.rows) or 'none'}" for side in (before, after))
        raise UsageError(f"the two have no case in common, so nothing can be compared: {cases_of}")
    old, new = before.sessions(cases), after.sessions(cases)
    old_rate, new_rate = rate_of(WRONG, old), rate_of(WRONG, new)
    low, high = effect_interval(old, new)
    test, p_value = exact_test(old, new)
    fall_from = old_rate.sessions_hit / len(old) if old_rate.sessions_hit else same_within
    appeared = tuple(sorted(after.signatures - before.signatures))
    if before.digest and before.digest == after.digest:
        answer, why = "same", "every run came out as before, event for event"
    else:
        answer, why = _answer(low, high, p_value, appeared, same_within)
    return Comparison(
        before.name, after.name, old_rate, new_rate, new_rate.share - old_rate.share, low, high, p_value, test,
        power(fall_from, fall_from * FALL_TO, len(old), len(new)), fall_from * FALL_TO, answer, why,
        appeared, tuple(sorted(before.signatures - after.signatures)),
    )  # fmt: skip


def exit_code(comparison: Comparison) -> int:
    """Return the exit code of `repro compare`: of an anomaly for worse, of clean for same and better."""
    words = {"worse": VerdictWord.ANOMALY, "inconclusive": VerdictWord.INCONCLUSIVE}
    return words.get(comparison.answer, VerdictWord.CLEAN).exit_code


def power_text(compared: Comparison) -> str:
    """Return in a sentence how large a fall of the rate would have been noticed."""
    fall = f"a fall from {share_text(compared.power_to / FALL_TO)} to {share_text(compared.power_to)} of sessions hit"
    units = f"{compared.before_rate.sessions:,} and {compared.after_rate.sessions:,} sessions"
    return f"With {units}, {fall} is seen with probability {compared.power:.2f}."


def _answer(low: float, high: float, p_value: float, appeared: tuple[str, ...], same_within: float) -> tuple[str, str]:
    """Return the answer's word and why. Test and interval must agree before a change is compared."""
    if appeared:
        return "worse", f"{len(appeared)} causes were found that were not found before"
    if p_value <= SIGNIFICANT and (low > 0 or high < 0):
        word, moved = ("worse", "rose") if low > 0 else ("better", "fell")
        return word, f"the rate {moved}, and neither the test nor the interval allows for chance"
    if -same_within <= low and high <= same_within:
        return "same", f"the interval of the difference lies within {share_text(same_within)} either way"
    return "inconclusive", (
        f"the interval of the difference reaches beyond {share_text(same_within)}, and no test tells the sides apart; "
        "more sessions would tell"
    )
