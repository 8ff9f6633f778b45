"""Tells from speculative decoding that an answer goes wrong: a corrupted model rejects its own drafts, a loop none.

Three rules look at the counts that the server sends with the stream; the first that is sure convicts.

- *fixed*: the rule of "Scaling Pain of Coding Agent Serving" (Z.ai, 2026): fewer than 1.4 tokens a verify, or more
  than 96 % of the drafts accepted, over the whole answer so far, either from 128 tokens on.
- *learned*: the whole answer lies outside the quantiles of clean answers (`acceptance_profile`), at its end.
- *change*: sums over windows of 64 tokens, which see what starts late in a long answer. An average does not.
"""

from functools import cached_property

import msgspec
from msgspec import UNSET, UnsetType

from detectors.answers.acceptance_profile import WINDOW_TOKENS, AcceptanceProfile, Chart, chart_of, percent
from detectors.answers.cusum import Cusum
from detectors.base import Finding
from detectors.evidence import DraftCounts
from repro.base.errors import UsageError
from repro.record.requests import SpecCounts

LENGTH_MIN = 1.4
RATE_MAX = 0.96
TOKENS_MIN = 128
FALSE_ALARM_RATE = 1e-3
ARL_TOKENS = 1e7
RANGES: dict[str, tuple[float, float]] = {  # what a limit must be at least and at most
    "length_min": (1.0, 1e6),  # each verify brings a token, whatever becomes of the drafts
    "rate_max": (1e-6, 1.0),
    "tokens_min": (1, 1e9),
    "false_alarm_rate": (1e-9, 0.5),
    "arl_tokens": (1e3, 1e15),
}
WINDOWS_SHOWN = 64
DRAFTS_APART_MAX = 0.5  # an answer's drafts a verify, from those of the profile


class AcceptanceRules(msgspec.Struct, frozen=True, dict=True):
    """Which rules judge, and their limits."""

    length_min: float | None = LENGTH_MIN  # completion tokens a verify, at least 1: the bonus token; None: no rule
    rate_max: float | None = RATE_MAX  # accepted of drafted tokens; None: no rule
    tokens_min: int = TOKENS_MIN  # generated tokens before either of the two convicts
    profile: AcceptanceProfile | None = None  # None: neither quantiles nor change detection
    false_alarm_rate: float | None = FALSE_ALARM_RATE  # the quantiles' rate per clean answer; None: no rule
    arl_tokens: float = ARL_TOKENS  # clean tokens between two false alarms of the change detection, on average
    required: bool = False  # without counts, or with short answers only, the verdict is then unknown

    def check(self) -> None:
        """Raise UsageError for an impossible limit, or for one that the profile has too few answers to learn."""
        for name, (least, most) in RANGES.items():
            value: float | None = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"acceptance: {name} = {value:g}; must be at least {least:g} and at most {most:g}")
        rate, profile = self.false_alarm_rate, self.profile
        if profile is None:
            return
        if rate is not None and rate < profile.false_alarm_rate_min:
            raise UsageError(
                f"acceptance: false_alarm_rate = {rate:g}: {profile.answers} clean answers vouch for "
                f"{profile.false_alarm_rate_min:g} at the least; learn from more, or raise it"
            )
        chart_of(profile, self.arl_tokens)  # raises where so rare an alarm cannot be had

    @cached_property
    def chart(self) -> Chart | None:
        """Return the change detection's chart; takes hundredths of a second, once."""
        return None if self.profile is None else chart_of(self.profile, self.arl_tokens)

    @property
    def tokens_judged(self) -> int:
        """Return how long an answer must be for a rule to say something about it."""
        return self.tokens_min if self.profile is None else min(self.tokens_min, self.profile.tokens_min)

    def unfit(self, counts: SpecCounts) -> str:
        """Return why these counts cannot be judged; "" when they can."""
        if not 0 <= counts.spec_accept_token_num <= counts.spec_draft_token_num or counts.spec_verify_ct < 0:
            return "the server counts more accepted drafts than drafts"
        if self.profile is not None and abs(counts.drafts - self.profile.drafts) > DRAFTS_APART_MAX:
            return f"the profile is of {self.profile.drafts:g} drafts a verify, the server has {counts.drafts:.3g}"
        return ""


class Acceptance:
    """The detector of one answer's acceptance; at most one finding."""

    name = "acceptance"

    def __init__(self, rules: AcceptanceRules) -> None:
        self.window_rates: list[float] = []
        self._ends_tokens: list[int] = []  # tokens at which the windows end
        self._rules = rules
        self._chart = rules.chart
        self._falls = Cusum(self._chart.fall_limit if self._chart else None)
        self._rises = Cusum(self._chart.rise_limit if self._chart else None)
        self._last = self._begun = SpecCounts()  # the latest counts, and those at the window's start
        self._found = False

    def feed(self, counts: SpecCounts) -> Finding | None:
        """Take the counts so far; a finding as soon as a rule is sure."""
        self._last = counts
        whole = counts.completion_tokens - self._begun.completion_tokens >= WINDOW_TOKENS
        if self._found or not counts.spec_verify_ct or self._rules.unfit(counts):
            return None
        return (self._window(counts) if whole else None) or self._fixed(counts)

    def close(self) -> Finding | None:
        """Compare the whole answer with clean ones."""
        counts, profile, rate = self._last, self._rules.profile, self._rules.false_alarm_rate
        if self._found or profile is None or rate is None or counts.completion_tokens < profile.tokens_min:
            return None
        if not counts.spec_draft_token_num or self._rules.unfit(counts):
            return None
        low, high = profile.length_below(rate), profile.rate_above(rate)
        if counts.accept_length < low:
            return self._finding("accept length below that of clean answers", counts.accept_length, low)
        if counts.accept_rate > high:
            return self._finding("accept rate above that of clean answers", counts.accept_rate, high)
        return None

    def _fixed(self, counts: SpecCounts) -> Finding | None:
        rules = self._rules
        if self._found or counts.completion_tokens < rules.tokens_min:
            return None
        if rules.length_min is not None and counts.accept_length < rules.length_min:
            return self._finding("accept length below the fixed limit", counts.accept_length, rules.length_min)
        if rules.rate_max is not None and counts.spec_draft_token_num and counts.accept_rate > rules.rate_max:
            return self._finding("accept rate above the fixed limit", counts.accept_rate, rules.rate_max)
        return None

    def _window(self, counts: SpecCounts) -> Finding | None:
        """Close a window: keep its rate, and add it to the sums."""
        window, self._begun = counts.since(self._begun), counts
        if window.spec_draft_token_num <= 0:  # the server may stop drafting when it is busy
            return None
        self.window_rates.append(window.accept_rate)
        self._ends_tokens.append(counts.completion_tokens)
        if self._chart is None:
            return None
        score = percent(window.accept_rate)
        for sums, added, signature in (
            (self._falls, self._chart.falls[score], "acceptance fell within the answer"),
            (self._rises, self._chart.rises[score], "acceptance rose within the answer"),
        ):
            if sums.feed(added):
                since = self.window_rates[sums.since :]
                began = self._ends_tokens[sums.since - 1] if sums.since else 0
                return self._finding(signature, sum(since) / len(since), None, began)
        return None

    def _finding(
        self, signature: str, value: float, limit: float | None, since_tokens: int | UnsetType = UNSET
    ) -> Finding:
        self._found = True
        counts = self._last
        evidence = DraftCounts(
            value=round(value, 4),
            limit=limit,
            accept_length=round(counts.accept_length, 4),
            accept_rate=round(counts.accept_rate, 4),
            window_rates=tuple(round(rate, 3) for rate in self.window_rates[-WINDOWS_SHOWN:]),
            **msgspec.structs.asdict(counts),
            since_tokens=since_tokens,
        )
        limit_text = f", the limit is {limit:.4g}" if limit is not None else " on average since then"
        claim = f"{signature}: {value:.4g} after {counts.completion_tokens} tokens{limit_text}"
        return Finding(self.name, "acceptance", claim, signature, evidence=evidence)
