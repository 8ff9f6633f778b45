"""How rarely acceptance convicts clean series, how soon it finds a change, and what it and the leak detector cost.

`python -m tests.bench.acceptance`: a chain of three drafts, each accepted with a fixed probability until one is
not; profiles learned from 2,000 clean answers of 600 tokens. Two minutes on one core.
"""

import argparse
import time
from collections.abc import Iterable

import numpy as np
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint

from detectors.answers.acceptance import Acceptance, AcceptanceRules
from detectors.answers.acceptance_profile import PERCENT, WINDOW_TOKENS, AcceptanceProfile, chart_of, learn, percent
from detectors.answers.cusum import average_run_length
from detectors.answers.leak import CrossPromptLeak, Nonces
from detectors.base import Finding
from detectors.evidence import DraftCounts
from repro.record.requests import SpecCounts
from tests.bench.results import add_record, show
from tests.detectors.spec import NO_RULES, clean_answers, drawn

HEALTHY = (0.7, 0.9, 0.998)  # acceptance of a draft; the last is the bundled model's
CHANGES = (0.0, 0.3, 0.5)
CLEAN_SERIES, CLEAN_TOKENS = 300, 10_000
CHANGED_SERIES, CHANGE_AT, CHANGED_TOKENS = 100, 8_000, 1_000
ARLS_TOKENS = (2e5, 1e7)
PROFILES = 8
TRUE_TOKENS = 5_000_000
FEEDS = 200_000


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_record(parser)
    given = parser.parse_args()
    profiles = {accepts: learn("", clean_answers(2_000, accepts, seed=1), 128) for accepts in HEALTHY}
    show(given, false_alarms(profiles), run_lengths(), delays(profiles), costs(profiles[0.7]))


def found(rules: AcceptanceRules, series: Iterable[SpecCounts]) -> Finding | None:
    """Return what convicts an answer."""
    detector = Acceptance(rules)
    for counts in series:
        if (finding := detector.feed(counts)) is not None:
            return finding
    return detector.close()


def sums_only(profile: AcceptanceProfile, arl_tokens: float) -> AcceptanceRules:
    """Return the rules of the change detection alone: no answer is as long as the quantiles want."""
    profile = AcceptanceProfile(
        profile.model, profile.drafts, profile.answers, 10**9, profile.length, profile.rate, profile.windows
    )
    return AcceptanceRules(length_min=None, rate_max=None, profile=profile, arl_tokens=arl_tokens)


def false_alarms(profiles: dict[float, AcceptanceProfile]) -> Table:
    """Return how many clean series each rule convicts."""
    table = Table("drafts accepted", "rule", "stated at most", "convicted", "95 % interval", title="Clean series")
    for accepts, profile in profiles.items():
        rules = {"fixed": (AcceptanceRules(), "")}
        for arl in ARLS_TOKENS:
            rules[f"sums, a false alarm in {arl:,.0f} tokens"] = (sums_only(profile, arl), f"{CLEAN_TOKENS / arl:.1%}")
        for name, (rule, stated) in rules.items():
            convicted = sum(
                found(rule, drawn(np.random.default_rng(seed), CLEAN_TOKENS, lambda seen, p=accepts: p)) is not None  # type: ignore[misc]
                for seed in range(CLEAN_SERIES)
            )
            low, high = proportion_confint(convicted, CLEAN_SERIES, method="beta")
            table.add_row(str(accepts), name, stated, f"{convicted} of {CLEAN_SERIES}", f"{low:.1%} to {high:.1%}")
    return table


def run_lengths() -> Table:
    """Return how far the true run length of the sums is from the stated one, by the answers they learned from."""
    title = f"True run length / stated one, {PROFILES} profiles"
    table = Table("drafts accepted", "answers learned from", "least", "median", "most", title=title)
    for accepts in (HEALTHY[0], HEALTHY[-1]):
        (long,) = clean_answers(1, accepts, tokens=TRUE_TOKENS, seed=PROFILES)
        bins = [percent(rate) for rate in long.window_rates]
        true = np.bincount(bins, minlength=PERCENT) / len(bins)
        for answers in (50, 200):
            ratios = []
            for seed in range(PROFILES):
                chart = chart_of(learn("", clean_answers(answers, accepts, seed=seed), 128), 1e7)
                sides = ((chart.falls, chart.fall_limit), (chart.rises, chart.rise_limit))
                lengths = [average_run_length(s, true.tolist(), limit) for s, limit in sides if limit is not None]
                ratios.append(WINDOW_TOKENS / sum(1 / length for length in lengths) / 1e7)
            told = (f"{value:.2f}" for value in (min(ratios), np.median(ratios), max(ratios)))
            table.add_row(str(accepts), str(answers), *told)
    return table


def delays(profiles: dict[float, AcceptanceProfile]) -> Table:
    """Return how many late changes each rule finds within 1,000 tokens, and after how many."""
    table = Table(
        "drafts accepted", "from 8,000 tokens on", "rule", "found", "median delay, tokens", title="Late changes"
    )
    for accepts, profile in profiles.items():
        for changed in CHANGES:
            rules = {"average, fixed": AcceptanceRules(rate_max=None), "sums": sums_only(profile, 1e7)}
            for name, rule in rules.items():
                waits = [_delay(rule, accepts, changed, seed) for seed in range(CHANGED_SERIES)]
                seen = [wait for wait in waits if wait is not None]
                median = f"{np.median(seen):.0f}" if seen else "-"
                table.add_row(str(accepts), str(changed), name, f"{len(seen)} of {CHANGED_SERIES}", median)
    return table


def _delay(rules: AcceptanceRules, accepts: float, changed: float, seed: int) -> int | None:
    series = drawn(
        np.random.default_rng(seed), CHANGE_AT + CHANGED_TOKENS, lambda seen: accepts if seen < CHANGE_AT else changed
    )
    finding = found(rules, series)
    if finding is None:
        return None
    assert isinstance(finding.evidence, DraftCounts)
    return finding.evidence.completion_tokens - CHANGE_AT


def costs(profile: AcceptanceProfile) -> Table:
    """Return microseconds a piece of an answer."""
    table = Table("detector", "microseconds a piece", title="Cost")
    detector = Acceptance(sums_only(profile, 1e12))
    counts = [SpecCounts(2 * n, n, n, 3 * n) for n in range(1, FEEDS)]
    fixed = Acceptance(NO_RULES)
    leak = CrossPromptLeak("a prompt", Nonces({f"s{n}": f"{n * 2654435761:016x}" for n in range(1_000)}))
    for name, feed, pieces in (
        ("acceptance, fixed rule", fixed.feed, counts),
        ("acceptance, with a profile", detector.feed, counts),
        ("cross_prompt_leak, 1,000 sessions", leak.feed, [" return value"] * FEEDS),
    ):
        started = time.process_time()
        for piece in pieces:
            feed(piece)  # type: ignore[operator]
        table.add_row(name, f"{(time.process_time() - started) / len(pieces) * 1e6:.2f}")
    return table


if __name__ == "__main__":
    main()
