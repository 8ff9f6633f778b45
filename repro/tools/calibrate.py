"""`repro calibrate`: what a server's clean answers score, so that the false-alarm rate of its oracles is a choice.

The server is asked at a gentle load, and each answer is checked past the cache as `repro replay` checks them. A
gentle load is what is taken for clean: rounding that differs from batch to batch and from a prefix hit to none is in
it, and so is whatever the server does wrong even then. What no rounding explains is told.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from detectors.answers.clean_cache import DECISIVE_NATS, ORACLES, Calibration, Judged, Oracle, judged
from repro.base.errors import StoppedError, TargetError
from repro.base.json_file import write_struct
from repro.load.listener import SILENT, LoadListener
from repro.load.plan import LoadPlan
from repro.load.wire import Api
from repro.record.checks import Check
from repro.run.limits import LimitWatch
from repro.run.targets.base import Load
from repro.run.targets.server import Checking, Server
from repro.scenario.schema import SYNTH, WEEK_S, LoadSpec
from repro.scenario.sessions import sessions_of
from repro.trace.format import Session

TURNS_A_SESSION = 5  # of synthesised ones
SESSIONS_A_DRAW = 64
KIND = "code-review"
SESSIONS_MAX = 100_000


class Gentle(msgspec.Struct, frozen=True, kw_only=True):
    """The load that a server's clean answers come from."""

    answers: int = 1000  # 999 can vouch for a false-alarm rate of 0.001
    traces: tuple[str, ...] = ()  # none: synthesised sessions
    concurrency: int = 4
    prompt_tokens: int = 2048  # of synthesised sessions
    answer_tokens: int = 128
    tokens_max: int = 100_000_000  # of all checks together
    seed: int = 0


class Calibrated(msgspec.Struct, frozen=True):
    """A calibration and how it came about."""

    calibration: Calibration
    asked: int
    unexplained: int  # answers that no rounding explains: corrupted at so gentle a load, or not greedy
    why: tuple[str, ...]  # what was left out, in sentences
    tokens: int  # that the checks took

    @property
    def told(self) -> dict[str, object]:
        """Return what `--json` prints."""
        scores = {oracle: self.calibration.scores(oracle) for oracle in ORACLES}
        return {
            "model": self.calibration.model,
            "api": self.calibration.api,
            "asked": self.asked,
            "oracles": {
                oracle: {
                    "answers": len(each),
                    "false_alarm_rate_min": 1 / (len(each) + 1),
                    "largest_nats": max(each, default=0),
                }
                for oracle, each in scores.items()
            },
            "unexplained": self.unexplained,
            "why": list(self.why),
            "tokens": self.tokens,
        }

    @property
    def in_words(self) -> list[str]:
        """Return what came of it, in sentences."""
        lines = []
        for oracle in ORACLES:
            scores = self.calibration.scores(oracle)
            told = "the target does not tell what it takes; it will not be used"
            if scores:
                told = f"{len(scores):,} clean answers, the largest score {scores[-1]:.3g} nats; "
                told += f"--false-alarm-rate can be {1 / (len(scores) + 1):.2g} at the least"
            lines.append(f"{oracle}: {told}")
        lines += self.why
        if self.unexplained:
            lines.append(
                f"{self.unexplained} answers differ by {DECISIVE_NATS:g} nats or more, which no rounding explains: "
                "look for corruption at this gentle load already; calibrated so, only worse than that is found"
            )
        return [*lines, f"checking took {self.tokens:,} tokens"]


def calibrate(
    url: str,
    out: Path,
    gentle: Gentle,
    *,
    api: Api = "chat",
    clock_s: Callable[[], float] = lambda: 0.0,
    watcher: LoadListener = SILENT,
) -> Calibrated:
    """Ask the server at `url`, write what its clean answers score to `out`, and return it.

    Raises TargetError for a server that cannot be asked, dies, or tells no log-probabilities; UsageError for traces
    that cannot be read and for a file that cannot be written; StoppedError for Ctrl-C.
    """
    sessions = _sessions(gentle)
    limits = LimitWatch(WEEK_S, gentle.answers * 10, clock_s)
    target = Server(url, api, Checking(gentle.tokens_max))
    plan = LoadPlan(
        concurrency=gentle.concurrency,
        seed=gentle.seed,
        time_scale=0.0,
        history="recorded" if gentle.traces else "generated",
        answer_tokens_max=gentle.answer_tokens,
    )
    load = Load(sessions, plan, (watcher,), limits)
    result = target.drive(load)
    if limits.reached:
        raise StoppedError(f"{limits.reached}; nothing was written")
    if result.target_lost or not result.answered:
        errors = ", ".join(f"{count} {kind}" for kind, count in result.errors.items())
        raise TargetError(f"{url}: {result.target_lost or f'no request was answered ({errors})'}; nothing was written")
    learned = _learn(url, target.checks.done, api, target.model, gentle)
    write_struct(out, learned)
    return _told(learned, target, result.answered)


def _sessions(gentle: Gentle) -> list[Session]:
    """Return sessions with as many turns as answers are wanted, or what the traces have."""
    if gentle.traces:
        spec = LoadSpec(sessions=SESSIONS_MAX, trace=gentle.traces)
        return _first_turns(sessions_of(spec, gentle.seed), gentle.answers)
    sessions: list[Session] = []
    number = 0
    while sum(len(session.turns) for session in sessions) < gentle.answers:
        spec = LoadSpec(
            sessions=SESSIONS_A_DRAW,
            trace=f"{SYNTH}{KIND}",
            turns=TURNS_A_SESSION,
            prompt_tokens=gentle.prompt_tokens,
            answer_tokens_max=gentle.answer_tokens,
        )
        sessions += sessions_of(spec, gentle.seed + number)
        number += 1
    return _first_turns(sessions, gentle.answers)


def _first_turns(sessions: Sequence[Session], turns: int) -> list[Session]:
    """Return the first sessions that have so many turns together, the last one cut."""
    kept: list[Session] = []
    for session in sessions:
        left = turns - sum(len(each.turns) for each in kept)
        if left <= 0:
            break
        kept.append(msgspec.structs.replace(session, turns=session.turns[:left]))
    return kept


def _learn(url: str, checks: Sequence[Check], api: Api, model: str, gentle: Gentle) -> Calibration:
    scores: dict[Oracle, tuple[float, ...]] = {}
    for oracle in ORACLES:
        told = [judged(oracle, check) for check in checks]
        scores[oracle] = tuple(sorted(each.score for each in told if each.score is not None))
    if not scores["rerun"]:
        why = next((judged("rerun", check).why for check in checks), "no answer had any text")
        raise TargetError(
            f"{url}: {why}; every oracle needs them. Another route may tell them (--api generate for SGLang); without, "
            "`repro replay` still looks for garble, loops, rare tokens and other sessions' nonces"
        )
    return Calibration(
        model, api, scores["rerun"], scores["surprisal"], scores["confidence"], answer_tokens=gentle.answer_tokens
    )


def _told(calibration: Calibration, target: Server, answered: int) -> Calibrated:
    checks = target.checks.done
    why = []
    for oracle in ORACLES:
        silent: list[Judged] = [each for check in checks if (each := judged(oracle, check)).score is None]
        if silent:
            why.append(f"{oracle}: {len(silent)} of {len(checks)} answers were left out: {silent[0].why}")
    unproved = sum(not check.bypassed for check in checks)
    if unproved:
        why.append(
            f"{unproved} of {len(checks)} checks may have used the cache: the server does not drop it (/flush_cache) "
            "and counts no cached tokens (vLLM does with --enable-prompt-tokens-details)"
        )
    if target.checks.over_budget:
        why.append(f"the token budget (--tokens) ended it after {len(checks)} of {target.checks.wanted} answers")
    scores = [[judged(oracle, check).score or 0.0 for oracle in ORACLES] for check in checks]
    unexplained = sum(max(each) >= DECISIVE_NATS for each in scores)
    return Calibrated(calibration, answered, unexplained, tuple(why), target.checks.tokens)
