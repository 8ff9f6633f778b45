"""`repro calibrate`: the scores of a server's clean answers, so that the false-alarm rate of its oracles is a choice.

The server is asked at a gentle load, and each answer is checked past the cache as `repro replay` checks them. The
answers count as clean: their scores contain rounding that differs between batches and with prefix hits, and also what
the server does wrong even at this load. Answers that no rounding explains are counted and reported.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

import msgspec

from detectors.answers.clean_cache import DECISIVE_NATS, ORACLES, Calibration, Judged, Oracle, judged
from repro.base.errors import StoppedError, TargetError
from repro.base.json_file import write_struct
from repro.load.clean import Checks
from repro.load.listener import SILENT, LoadListener
from repro.load.plan import LoadPlan
from repro.load.wire import Api
from repro.run.limits import LimitWatch
from repro.run.targets.base import Load
from repro.run.targets.server import Checking, Server
from repro.scenario.ranges import WEEK_S
from repro.scenario.schema import SYNTH, LoadSpec
from repro.scenario.sessions import sessions_of
from repro.trace.format import Session

TURNS_A_SESSION = 5  # turns of a synthesised session
SESSIONS_A_DRAW = 64
KIND = "code-review"
SESSIONS_MAX = 100_000


class GentleLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The load that a server's clean answers come from."""

    answers: int = 1000  # 999 can vouch for a false-alarm rate of 0.001
    traces: tuple[str, ...] = ()  # none: synthesised sessions
    concurrency: int = 4
    prompt_tokens: int = 2048  # the longest prompt of a synthesised session
    answer_tokens: int = 128
    tokens_max: int = 100_000_000  # all checks together may take
    seed: int = 0


class Calibrated(msgspec.Struct, frozen=True):
    """A calibration, and the load and checks behind it."""

    calibration: Calibration
    asked: int
    unexplained: int  # answers that no rounding explains: corrupted at so gentle a load, or not greedy
    why: tuple[str, ...]  # what was left out, in sentences
    tokens: int  # spent on the checks

    @property
    def as_json(self) -> dict[str, object]:
        """Return what `--json` prints."""
        scores = {oracle: self.calibration.scores(oracle) for oracle in ORACLES}
        rows = {
            oracle: {
                "answers": len(each), "false_alarm_rate_min": 1 / (len(each) + 1), "largest_nats": max(each, default=0),
            }
            for oracle, each in scores.items()
        }  # fmt: skip
        return {
            "model": self.calibration.model, "api": self.calibration.api, "asked": self.asked, "oracles": rows,
            "unexplained": self.unexplained, "why": list(self.why), "tokens": self.tokens,
        }  # fmt: skip

    @property
    def sentences(self) -> list[str]:
        """Return the result in sentences."""
        lines = []
        for oracle in ORACLES:
            scores = self.calibration.scores(oracle)
            words = "the target does not tell what it takes; it will not be used"
            if scores:
                words = f"{len(scores):,} clean answers, the largest score {scores[-1]:.3g} nats; "
                words += f"--false-alarm-rate can be {1 / (len(scores) + 1):.2g} at the least"
            lines.append(f"{oracle}: {words}")
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
    gentle: GentleLoad,
    *,
    api: Api = "chat",
    clock_s: Callable[[], float] = lambda: 0.0,
    watcher: LoadListener = SILENT,
) -> Calibrated:
    """Ask the server at `url`, write what its clean answers score to `out`, and return it.

    Raises TargetError for a server that cannot be asked, dies, or tells no log-probabilities; UsageError for traces
    that cannot be read and for a file that cannot be written; StoppedError for Ctrl-C.
    """
    limits = LimitWatch(WEEK_S, gentle.answers * 10, clock_s)
    target = Server(url, api, Checking(gentle.tokens_max))
    plan = LoadPlan(
        concurrency=gentle.concurrency,
        seed=gentle.seed,
        time_scale=0.0,
        history="recorded" if gentle.traces else "generated",
        answer_tokens_max=gentle.answer_tokens,
    )
    result = target.drive(Load(_sessions(gentle), plan, (watcher,), limits))
    if limits.cut:
        raise StoppedError(f"{limits.cut.why}; nothing was written")
    if result.target_lost or not result.answered:
        errors = ", ".join(f"{count} {kind}" for kind, count in result.errors.items())
        raise TargetError(f"{url}: {result.target_lost or f'no request was answered ({errors})'}; nothing was written")
    judgements = {oracle: [judged(oracle, check) for check in target.checks.done] for oracle in ORACLES}
    scores = {oracle: _scores(each) for oracle, each in judgements.items()}
    if not scores["rerun"]:
        why = next((each.why for each in judgements["rerun"]), "no answer had any text")
        raise TargetError(
            f"{url}: {why}; every oracle needs them. Another route may tell them (--api generate for SGLang); without, "
            "`repro replay` still looks for garble, loops, rare tokens and other sessions' nonces"
        )
    calibration = Calibration(
        target.model, api, scores["rerun"], scores["surprisal"], scores["confidence"],
        answer_tokens=gentle.answer_tokens,
    )  # fmt: skip
    write_struct(out, calibration)
    worst = (max(each.score or 0.0 for each in answer) for answer in zip(*judgements.values(), strict=True))
    unexplained = sum(score >= DECISIVE_NATS for score in worst)
    left_out = _left_out(target.checks, judgements)
    return Calibrated(calibration, result.answered, unexplained, left_out, target.checks.tokens)


def _scores(judgements: Sequence[Judged]) -> tuple[float, ...]:
    return tuple(sorted(each.score for each in judgements if each.score is not None))


def _sessions(gentle: GentleLoad) -> list[Session]:
    """Return sessions with as many turns as answers are wanted, or what the traces have."""
    if gentle.traces:
        spec = LoadSpec(sessions=SESSIONS_MAX, trace=gentle.traces)
        return _first_turns(sessions_of(spec, gentle.seed), gentle.answers)
    spec = LoadSpec(
        sessions=SESSIONS_A_DRAW,
        trace=f"{SYNTH}{KIND}",
        turns=TURNS_A_SESSION,
        prompt_tokens=gentle.prompt_tokens,
        answer_tokens_max=gentle.answer_tokens,
    )
    sessions: list[Session] = []
    for seed in count(gentle.seed):
        if sum(len(session.turns) for session in sessions) >= gentle.answers:
            break
        sessions += sessions_of(spec, seed)
    return _first_turns(sessions, gentle.answers)


def _first_turns(sessions: Sequence[Session], turns: int) -> list[Session]:
    """Return the first sessions that have so many turns together, the last one cut."""
    first: list[Session] = []
    for session in sessions:
        if turns > 0:
            first.append(msgspec.structs.replace(session, turns=session.turns[:turns]))
            turns -= len(session.turns)
    return first


def _left_out(checks: Checks, judgements: Mapping[Oracle, Sequence[Judged]]) -> tuple[str, ...]:
    """Return which answers an oracle could not judge, and what may be wrong with the checks."""
    why, done = [], len(checks.done)
    for oracle, each in judgements.items():
        silent = [judgement for judgement in each if judgement.score is None]
        if silent:
            why.append(f"{oracle}: {len(silent)} of {done} answers were left out: {silent[0].why}")
    unproved = sum(not check.bypassed for check in checks.done)
    if unproved:
        why.append(
            f"{unproved} of {done} checks may have used the cache: the server does not drop it (/flush_cache) "
            "and counts no cached tokens (vLLM does with --enable-prompt-tokens-details)"
        )
    if checks.over_budget:
        why.append(f"the token budget (--tokens) ended it after {done} of {checks.wanted} answers")
    return tuple(why)
