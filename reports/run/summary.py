"""A run in numbers: what the terminal and the HTML report show. Pure data, made from the run folder."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from detectors.base import Finding, by_cause, decode_finding
from reports.rates import Rate, rate_of, rate_text
from reports.run.funnel import Stage, stages_of
from repro.base.verdict_word import VerdictWord
from repro.record.counts import (
    Compared,
    ContextsCut,
    Retries,
    compared_of,
    contexts_cut_of,
    funnel_of,
    retries_of,
    session_hits,
)
from repro.record.requests import RequestRecord
from repro.record.verdict import ClientLag, DetectorAnswer, FaultOutcome, RunVerdict
from repro.record.view import Run
from repro.scenario.schema import bundled_names, find

MEANINGS = {
    "clean": "Every detector that applies was silent, and the run did what its scenario is about.",
    "anomaly": "At least one detector convicted; the evidence is below.",
    "vacuous": "The run proves nothing: a fault never fired or changed no order, or a floor was not reached.",
    "failed": "The harness or the target broke, or a deterministic run was not deterministic.",
    "inconclusive": "A detector that applies could not tell, or the numbers are too small.",
    "interrupted": "The run was stopped before its end; what it had recorded is here.",
    "unfinished": "The run was killed or is still going on; what it has recorded is here.",
}
LAYERS = ("ordering", "canary", "divergence", "acceptance", "text")


class Group(msgspec.Struct, frozen=True):
    """Findings of one cause."""

    signature: str
    detector: str
    layer: str
    count: int
    requests: int  # distinct ones among the examples
    examples: tuple[Finding, ...]

    @property
    def title(self) -> str:
        """Return the cause in words, without the detector's name."""
        return self.signature.removeprefix(f"{self.detector}: ")


class Quantiles(msgspec.Struct, frozen=True):
    """Of `count` measured values."""

    count: int
    p50: float
    p90: float
    p99: float


class Summary(msgspec.Struct, frozen=True):
    """All that a report says in numbers and short sentences."""

    scenario: str
    title: str
    defects: tuple[str, ...]  # armed ones: none in a control run
    conditions: tuple[str, ...]  # "control", "no faults"
    seed: int
    utc: str
    state: str
    error: str
    verdict: str
    exit_code: int | None  # None for a run without a verdict
    meaning: str
    why: str  # the verdict's sentences
    judged: bool  # False for a run that ended before detectors and oracle had spoken
    rate: Rate
    funnel: tuple[Stage, ...]
    model_own: int  # requests with a text finding that the clean decode has too
    compared: Compared
    groups: tuple[Group, ...]
    faults: dict[str, FaultOutcome]
    exercised: dict[str, int]
    detectors: dict[str, DetectorAnswer]
    ttft_ms: Quantiles | None
    token_ms: Quantiles | None  # mean time of a token after the first, per request
    lag_ms: Quantiles | None  # how late the client sent
    loop_lag_ms: ClientLag
    finishes: dict[str, int]
    cut: ContextsCut
    retries: Retries
    events: int
    dropped_events: int
    fingerprint: str
    token: str
    bundled: bool  # the scenario comes with the package, so a token finds it
    url: str  # the server's; "" for the bundled stack
    checking: tuple[str, ...]  # options that check the server's answers, and --redact
    api: str  # the server's
    load: dict[str, Any]  # the scenario's table
    acceptance: dict[str, Any]  # the scenario's table; {}: none
    versions: dict[str, str]
    path: str


def summarise(run: Run) -> Summary:
    """Return the summary of a run, also of one that was killed; reads no events."""
    meta, records = run.meta, run.requests
    verdict = run.verdict or RunVerdict(word=VerdictWord.FAILED, scenario=meta.scenario, seed=meta.seed)
    name = _verdict_name(run)
    judged = run.verdict is not None or funnel_of(records).convicted
    # An older record may have only the answers of its verdict.
    detectors = meta.detectors | {
        name: DetectorAnswer(answer) for name, answer in verdict.detectors.items() if name not in meta.detectors
    }
    answers = {name: each.answer for name, each in detectors.items()}
    url = str(meta.config.get("url") or "")
    scenario, exercised = _scenario(run.scenario_toml), msgspec.structs.asdict(verdict.exercised)
    floors = _table(scenario, "exercise")
    return Summary(
        scenario=meta.scenario,
        title=str(scenario.get("title") or meta.scenario),
        defects=() if verdict.control else tuple(map(str, _defects(run, scenario))),
        conditions=_conditions(run),
        seed=meta.seed,
        utc=meta.utc,
        state=meta.state,
        error=meta.error,
        verdict=name,
        exit_code=name.exit_code if isinstance(name, VerdictWord) else None,
        meaning=MEANINGS.get(name, ""),
        why="; ".join(verdict.why),
        judged=judged,
        rate=_rate(records, answers),
        funnel=stages_of(records, answers, judged=judged, exercised=verdict.exercised, at_url=bool(url)),
        model_own=sum(record.model_own for record in records),
        compared=compared_of(records),
        groups=grouped(run.findings(decode_finding)),
        faults=verdict.faults,
        exercised={} if url else {name: n for name, n in exercised.items() if n or name in floors},
        detectors=detectors,
        ttft_ms=_quantiles([(r.first_token_us - r.sent_us) / 1e3 for r in records if r.first_token_us >= 0]),
        token_ms=_quantiles([value for r in records if (value := _token_ms(r)) is not None]),
        lag_ms=_quantiles([(r.sent_us - r.due_us) / 1e3 for r in records if min(r.sent_us, r.due_us) >= 0]),
        loop_lag_ms=verdict.client_lag_ms,
        finishes=_finishes(records),
        cut=contexts_cut_of(records, verdict.contexts_cut.limit_tokens),
        retries=retries_of(records),
        events=meta.events,
        dropped_events=meta.dropped_events,
        fingerprint=verdict.fingerprint,
        token=verdict.token,
        bundled=_is_bundled(meta.scenario, run.scenario_toml),
        url=url,
        checking=_checking(meta.config) if url else (),
        api=str(meta.config.get("api") or "chat"),
        load=_table(scenario, "load"),
        acceptance=_table(scenario, "acceptance"),
        versions=meta.versions,
        path=str(run.path),
    )


def _checking(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of `repro replay --target` that bring a run's checks again, from its configuration."""
    words: list[str] = []
    if config.get("calibration"):
        for option in ("calibration", "false_alarm_rate", "oracle_tokens"):
            words += [f"--{option.replace('_', '-')}", str(config[option])]
    return (*words, "--redact") if config.get("redact") else tuple(words)


def headline(summary: Summary) -> str:
    """Return the rate with its interval as a sentence, or that nothing has been judged yet."""
    if summary.judged:
        return rate_text(summary.rate)
    return f"Recorded requests: {summary.rate.of:,}; the run ended before they were judged."


def grouped(findings: Sequence[Finding]) -> tuple[Group, ...]:
    """Return the findings by signature: deepest layer first, then the most frequent."""
    groups = [
        Group(
            signature=signature,
            detector=examples[0].detector,
            layer=examples[0].layer,
            count=sum(finding.count for finding in examples),
            requests=len({finding.request for finding in examples if finding.request}),
            examples=tuple(examples),
        )
        for signature, examples in by_cause(findings).items()
    ]
    return tuple(sorted(groups, key=lambda group: (_depth(group.layer), -group.count, group.signature)))


EXERCISE_LABELS = {
    "load_backs": "load-backs",
    "host_hit_tokens": "host-hit tokens",
    "reads_overlapping_load": "indexer reads overlapping a load",
}


def exercise_label(name: str) -> str:
    """Return what a floor counts, in words."""
    return EXERCISE_LABELS.get(name, name.replace("_", " "))


def _depth(layer: str) -> int:
    return LAYERS.index(layer) if layer in LAYERS else len(LAYERS)


def _verdict_name(run: Run) -> str:
    if run.verdict is not None:
        return run.verdict.word
    return {"running": "unfinished", "interrupted": "interrupted"}.get(run.meta.state, VerdictWord.FAILED)


def _rate(records: Sequence[RequestRecord], answers: Mapping[str, str]) -> Rate:
    """Return the rate of requests that read wrong bytes; without a canary, of those with wrong answers."""
    blind = answers.get("canary") == "not_applicable"
    return rate_of("answered wrongly" if blind else "read wrong bytes", session_hits(records, blind=blind))


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    if not values:
        return None
    p50, p90, p99 = (float(value) for value in np.quantile(np.asarray(values), (0.5, 0.9, 0.99)))
    return Quantiles(len(values), p50, p90, p99)


def _token_ms(record: RequestRecord) -> float | None:
    if record.completion_tokens < 2 or min(record.first_token_us, record.finished_us) < 0:
        return None
    return (record.finished_us - record.first_token_us) / 1e3 / (record.completion_tokens - 1)


def _finishes(records: Sequence[RequestRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        reason = record.finish or "open"
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items()))


def _is_bundled(name: str, text: str) -> bool:
    return name in bundled_names() and find(name).source == text


def _table(scenario: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = scenario.get(name)
    return table if isinstance(table, dict) else {}


def _scenario(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}  # a replay has no scenario file, and a report must come out of any run


def _defects(run: Run, scenario: Mapping[str, Any]) -> Sequence[object]:
    armed = run.meta.config.get("defects", scenario.get("defects"))
    return armed if isinstance(armed, list | tuple) else ()


def _conditions(run: Run) -> tuple[str, ...]:
    control = run.verdict.control if run.verdict else run.meta.config.get("control") is True
    names = {"control: guards in place": control, "no faults": run.meta.config.get("no_faults") is True}
    return tuple(words for words, holds in names.items() if holds)
