"""Measures the oracles for a server at a URL: `python -m tests.bench.closed_oracles FILE [--judge]`.

The bundled stack is served with a defect and the faults that bring it out, and as control with the same faults and
no defect. A client drives agent sessions against its /generate and checks every answer afterwards, over HTTP alone
(httpx, in one virtual time with the stack, so that a seed gives the same numbers again). What the server does not
know: whether a request has read wrong bytes (canary), and the clean decode of its prompt, token by token. A
*corrupted* answer is another one for that, a *lucky* one is the same in spite of it; *clean* are the others.

Answers go to FILE as JSON lines, run by run; what is there already is not measured again. Then, or with --judge at
once, the clean answers of the control's first seeds make the calibration, and those of all other seeds are judged.
With --noise X the server's logits get a normal error of that deviation, anew in each pass, as rounding brings it on a
real machine: clean answers differ then too, and so would some of the corrupted ones without any wrong byte.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import torch
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint

from detectors.answers.clean_cache import ORACLES, Calibration, Oracle, judged
from detectors.pages.canary import CanaryDetector
from repro.base.clock import run_virtual
from repro.fault.defects import with_defects
from repro.fault.injector import Injector
from repro.load.again import Asked, RememberingClient
from repro.load.asgi import AsgiStreamTransport
from repro.load.clean import ASKED_FOR, Checks, check_answers
from repro.load.client import open_client
from repro.load.driver import drive
from repro.load.plan import LoadPlan
from repro.pool.call import alive
from repro.pool.local import DAY_S, LocalPool
from repro.record.checks import Check
from repro.run.checkpoint import Checkpoint, load_checkpoint
from repro.run.judge.clean_decode import CleanDecoder
from repro.scenario.schema import Scenario, parse
from repro.scenario.sessions import sessions_of
from repro.serve.device.sim import SimDevice
from repro.serve.engine import LoadedModel
from repro.serve.model.glm5 import Glm5
from repro.serve.server.app import create_app
from repro.serve.stack import build
from repro.serve.types import GenerateRequest, Update
from tests.bench.results import add_record, show

UNBOUNDED_TOKENS = 10**9
RATE = 0.001
RUNS_A_PROCESS = 4  # a process keeps some 200 MB of each run
SCENARIO = """
format = 1
title = "small, under pressure"
defects = {defects}

[target]
config = "tiny-hicache"
device_pages = 32
host_pages = 400
context_tokens = 1024
rows = 12
free_list = "fifo"

[load]
sessions = 12
concurrency = 12
turns = 4
prompt_tokens = 640
answer_tokens_max = 32
history = "generated"
trace = "synth:code-review"
gap_s = [1.0, 6.0]

[[fault]]
at = "loadback.copy_layer"
when = {{ probability = 0.5 }}
do = {{ kind = "delay", us = 5000 }}
"""
CONTROL = ""
DEFECTS = ("hicache_early_read", "hicache_index_not_restored")


Kind = Literal["corrupted", "lucky", "clean"]
KINDS: tuple[Kind, ...] = ("corrupted", "lucky", "clean")


class Answered(msgspec.Struct, frozen=True):
    """One answer: what is true of it, and what the server says when it is asked."""

    defect: str  # "": control
    seed: int
    noise: float
    differs: bool  # from the clean decode
    wrong_bytes: bool  # its request read some
    check: Check

    @property
    def kind(self) -> Kind:
        """Return what is true of it."""
        return "clean" if not self.wrong_bytes else "corrupted" if self.differs else "lucky"

    @property
    def run(self) -> tuple[str, int, float]:
        """Return what was run."""
        return self.defect, self.seed, self.noise


class Noise:
    """A model whose logits are each a little off, and never twice in the same way."""

    def __init__(self, model: Glm5, deviation: float, seed: int) -> None:
        self._model = model
        self._deviation = deviation
        self._draw = torch.Generator().manual_seed(seed)

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the model's logits with the errors added."""
        exact = self._model.logits(hidden)
        return exact + self._deviation * torch.randn(exact.shape, generator=self._draw)


@dataclass
class Served:
    """What came of serving: the answers with their checks, what the engine was asked, who read wrong bytes."""

    answers: list[tuple[Asked, Check]]
    asked: dict[str, GenerateRequest]
    wrong: set[str]


def serve(scenario: Scenario, checkpoint: Checkpoint, seed: int, noise: float) -> Served:
    """Serve the scenario's load and check every answer that has tokens."""
    canary = CanaryDetector()
    injector = Injector(scenario.faults, seed, (canary.feed,))
    device = SimDevice(injector)
    guards = with_defects(scenario.defects, scenario.name)
    asked: dict[str, GenerateRequest] = {}

    async def story() -> list[tuple[Asked, Check]]:
        engine = build(scenario.config, _model(checkpoint, noise, seed), device, guards, injector)
        generate = engine.generate

        def generate_and_note(request: GenerateRequest) -> AsyncIterator[Update]:
            asked[request.id] = request
            return generate(request)

        engine.generate = generate_and_note  # type: ignore[method-assign, assignment]
        app = create_app(engine, checkpoint.tokenizer, clock=asyncio.get_running_loop().time)
        http = open_client("http://bundled", transport=AsgiStreamTransport(app), read_timeout_s=DAY_S).http
        client = RememberingClient(http, api="generate", extra=ASKED_FOR["generate"])
        running = asyncio.create_task(engine.run())
        await drive(sessions_of(scenario.load, seed), client, _plan(scenario, seed))
        asked = sorted(
            (each for each in client.asked.values() if each.answer.tokens), key=lambda each: each.ask.request
        )
        checks = Checks()
        await check_answers(client, asked, checks, tokens_max=UNBOUNDED_TOKENS)
        engine.stop()
        await running
        return list(zip(asked, checks.done, strict=True))

    with torch.inference_mode():
        answers = run_virtual(story(), device)
    return Served(answers, asked, {*canary.corrupted, *canary.poisoned})


def _plan(scenario: Scenario, seed: int) -> LoadPlan:
    load = scenario.load
    return LoadPlan(
        shape=load.shape,
        concurrency=load.concurrency,
        seed=seed,
        history=load.history,
        context_tokens_max=scenario.config.context_tokens,
        answer_tokens_max=load.answer_tokens_max,
    )


def _model(checkpoint: Checkpoint, noise: float, seed: int) -> LoadedModel:
    weights = checkpoint.model.weights
    assert weights is not None
    if not noise:
        return checkpoint.model
    return replace(checkpoint.model, weights=Noise(weights, noise, seed))  # type: ignore[arg-type]


def measure(defect: str, seed: int, noise: float) -> list[Answered]:
    """Return all answers of one run, with the truth."""
    torch.set_num_threads(1)
    defects = msgspec.json.encode([defect] if defect else []).decode()
    scenario = parse(SCENARIO.format(defects=defects), "oracles", "oracles.toml")
    checkpoint = load_checkpoint(scenario.config)
    assert checkpoint.model.weights is not None
    decoder = CleanDecoder(checkpoint.model.weights, scenario.config.context_tokens, checkpoint.model.eos)
    served = serve(scenario, checkpoint, seed, noise)
    answered = []
    for kept, check in served.answers:
        request = kept.ask.request
        differs = decoder.check(served.asked[request], tuple(kept.answer.tokens)).first_difference >= 0
        answered.append(Answered(defect, seed, noise, differs, request in served.wrong, check))
    return answered


def collect(path: Path, wanted: Sequence[tuple[str, int, float]], workers: int) -> None:
    """Measure the runs that are not in the file yet, and add them to it."""
    measured = {each.run for each in read(path)}
    with LocalPool(workers, timeout_s=DAY_S, calls_each=RUNS_A_PROCESS) as pool:
        for _, answers in pool.results(measure_run, (run for run in wanted if run not in measured)):
            with path.open("ab") as file:
                file.write(b"".join(msgspec.json.encode(each) + b"\n" for each in alive(answers)))


def measure_run(run: tuple[str, int, float]) -> list[Answered]:
    """Return all answers of a run that is given as its defect, seed and noise."""
    return measure(*run)


def read(path: Path) -> Iterator[Answered]:
    """Yield the answers in a file, in the order of their runs."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    answers = [msgspec.json.decode(line, type=Answered) for line in lines]
    yield from sorted(answers, key=lambda each: (*each.run, each.check.request))


def calibration_of(answers: Sequence[Answered]) -> Calibration:
    """Return what these answers, all clean, score."""
    scores = {oracle: tuple(sorted(judged(oracle, each.check).score or 0.0 for each in answers)) for oracle in ORACLES}
    return Calibration("bundled", "generate", **scores)


def judge(answers: Sequence[Answered], calibrated: int, rate: float) -> Iterator[Table | str]:
    """Yield what each oracle finds and misses at `rate`, or at the least rate that the calibration vouches for."""
    clean = [each for each in answers if each.defect == CONTROL and each.seed < calibrated]
    judged_ones = [each for each in answers if each.seed >= calibrated]
    calibration = calibration_of(clean)
    rate = max(rate, 1 / (len(clean) + 1))
    title = f"calibrated on {len(clean):,} clean answers of {len({each.run for each in clean})} runs, rate {rate:.2g}"
    table = Table("oracle", "limit, nats", "defect", *KINDS, "not judged", title=title)
    rules = {oracle: (oracle,) for oracle in ORACLES} | {"any of them": ORACLES}
    for rule, oracles in rules.items():
        limits = {oracle: calibration.limit(oracle, rate) for oracle in oracles}
        told = ", ".join(f"{limit:.3g}" for limit in limits.values())
        for defect in (CONTROL, *DEFECTS, "all"):
            rows = [each for each in judged_ones if defect in (each.defect, "all")]
            table.add_row(rule, told, defect or "control", *_counts(limits, rows))
    yield table
    for each in judged_ones:
        scores = {oracle: judged(oracle, each.check).score or 0.0 for oracle in ORACLES}
        if each.kind == "corrupted" and all(
            score <= calibration.limit(oracle, rate) for oracle, score in scores.items()
        ):
            yield f"missed by all: {each.run} {each.check.request}, {scores}"


def _counts(limits: Mapping[Oracle, float], rows: Sequence[Answered]) -> Iterator[str]:
    """Yield how many answers of each kind are convicted, and how many none of these oracles can judge."""
    scores = [(each, {oracle: judged(oracle, each.check).score for oracle in limits}) for each in rows]
    told = [(each.kind, score) for each, score in scores if any(value is not None for value in score.values())]
    for kind in KINDS:
        of_kind = [score for other, score in told if other == kind]
        found = sum(any((score[oracle] or 0.0) > limit for oracle, limit in limits.items()) for score in of_kind)
        yield _share(found, len(of_kind))
    yield str(len(rows) - len(told))


def _share(count: int, of: int) -> str:
    low, high = proportion_confint(count, of, method="beta") if of else (0.0, 1.0)
    return f"{count} of {of} ({low:.2%} to {high:.2%})"


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--judge", action="store_true", help="what is in the file; measure nothing")
    parser.add_argument("--seeds", type=int, default=26)
    parser.add_argument("--calibrated", type=int, default=12, help="seeds below this one make the calibration")
    parser.add_argument(
        "--defect-seeds", type=int, nargs=2, metavar=("FROM", "TO"), help="all judged ones if not given"
    )
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--workers", type=int, default=2)
    add_record(parser)
    chosen = parser.parse_args()
    if not chosen.judge:
        clean = [(CONTROL, seed, chosen.noise) for seed in range(chosen.calibrated)]
        tested = range(chosen.calibrated, chosen.seeds)
        bad = range(*chosen.defect_seeds) if chosen.defect_seeds else tested
        others = [(CONTROL, seed, chosen.noise) for seed in tested]
        others += [(defect, seed, chosen.noise) for seed in bad for defect in DEFECTS]
        collect(chosen.file, clean + others, chosen.workers)
    answers = [each for each in read(chosen.file) if each.noise == chosen.noise]
    show(chosen, *judge(answers, chosen.calibrated, chosen.rate))


if __name__ == "__main__":
    main()
