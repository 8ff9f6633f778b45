"""Print the engine's speed beside transformers', and what watching a run costs.

Run: python -m tests.bench.engine [--sessions 16] [--context 3000] [--tokens 64] [--threads 2] [--turns N]

Speed. Ours is the real engine: scheduler, sampling, text and stamps included, each session a request. For
transformers a bare greedy loop stands, without what `generate` adds, in inference mode, with whichever of its
attention implementations decodes faster. Both have the bundled checkpoint in fp32, the same contexts (real
source text, another for each session) and threads, and are warm. Each sample is one decode step or one
prompt; given are the median and the 10th to 90th percentile. All is wall time: let the machine be idle. Below the
table stands what the machine allows, measured beside it (floor.py).

Watching. The scenario hicache_early_read is run as `repro run` does it, on one thread, with a stopwatch on the
detectors.
"""

# ruff: noqa: E402
import os

# Both sides get the cores at their best: on an idle machine, threads that spin are twice as fast as threads that
# sleep, as `repro` has them for busy machines. OpenMP reads this when torch is imported.
os.environ["OMP_WAIT_POLICY"] = "ACTIVE"

import argparse
import asyncio
import copy
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import torch
import transformers
from rich.table import Table
from tokenizers import Tokenizer

from detectors.pages.canary import CanaryDetector
from detectors.pages.ordering import OrderingDetector
from detectors.pages.ownership import OwnershipDetector
from detectors.text.garbled import Garbled
from detectors.text.rare_tokens import RareTokens
from detectors.text.repetition import Repetition
from repro.base.clock import run_virtual
from repro.record.exercised import ExerciseMeter
from repro.record.folder import RunFolder
from repro.run.checkpoint import Checkpoint, load_checkpoint
from repro.run.judge.clean_decode import CleanDecoder
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario import schema as scenarios
from repro.serve.config import CONFIGS, EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import Engine
from repro.serve.kv.reads import ReadCheck, StepReads
from repro.serve.types import GenerateRequest, SamplingParams
from tests.bench import floor
from tests.bench.results import add_record, show
from tests.serve.model.builders import CHECKPOINT

GOAL_SESSIONS, GOAL_BATCH_1, GOAL_BATCH_ALL = 16, 5.0, 1.0  # ours over theirs
WARM_UP_STEPS = 2  # of each measurement
REFERENCE_STEPS = {True: 24, False: 8}  # decode steps of transformers: one row, all rows
SCENARIO = "hicache_early_read"
SEED = 7

Rates = list[float]  # tokens per second, one a sample
Answers = list[list[int]]


@dataclass(frozen=True)
class Speed:
    """One row: samples of both rates, and the answers that were decoded."""

    name: str
    rows: int
    prefill: Rates
    decode: Rates
    answers: Answers

    @property
    def decode_median(self) -> float:
        return float(np.median(self.decode))


def contexts(tokenizer: Tokenizer, sessions: int, tokens: int) -> list[tuple[int, ...]]:
    """Return a context for each session, of Python's own source text; no two begin alike."""
    ids: list[int] = []
    for path in sorted(Path(argparse.__file__).parent.glob("*.py")):
        if len(ids) >= sessions * tokens:
            break
        ids += tokenizer.encode(path.read_text(encoding="utf-8")).ids
    assert len(ids) >= sessions * tokens, f"Python's library has {len(ids)} tokens; ask for fewer sessions or tokens"
    return [tuple(ids[first : first + tokens]) for first in range(0, sessions * tokens, tokens)]


# -- ours ----------------------------------------------------------------------------------------------


def config_for(sessions: int, tokens: int) -> EngineConfig:
    """Return tiny-hicache with room for so many sessions of so many tokens."""
    base = CONFIGS["tiny-hicache"]
    pages = tokens // base.page_tokens + 2
    return msgspec.structs.replace(
        base,
        rows=max(base.rows, sessions),
        device_pages=max(base.device_pages, (sessions + 1) * pages),
        context_tokens=max(base.context_tokens // 2, pages * base.page_tokens),
    )


def our_speed(checkpoint: Checkpoint, prompts: Sequence[tuple[int, ...]], tokens: int) -> Speed:
    """Return the engine's speed at one session for each prompt."""
    config = config_for(len(prompts), len(prompts[0]) + tokens)
    device = SimDevice()
    with torch.inference_mode():
        return run_virtual(_ours(Engine(config, checkpoint.model, device), prompts, tokens), device)


async def _ours(engine: Engine, prompts: Sequence[tuple[int, ...]], tokens: int) -> Speed:
    running = asyncio.create_task(engine.run())
    warm_up = [token async for token, _ in _answer(engine, "warm-up", prompts[0][::-1][:600], 8)]
    assert len(warm_up) == 8
    start_s = time.perf_counter()
    answers = [_answer(engine, f"s{number}", prompt, tokens) for number, prompt in enumerate(prompts)]
    stamped = await asyncio.gather(*(_all_of(answer) for answer in answers))
    engine.stop()
    await running
    first_s = [start_s, *sorted(answer[0][1] for answer in stamped)]
    # Prefill goes before decode: once the last session has its first token, each step gives one to everybody.
    last = max(stamped, key=lambda answer: answer[0][1])
    step_s = np.diff([at_s for _, at_s in last])[WARM_UP_STEPS:]
    prefill, decode = len(prompts[0]) / np.diff(first_s), len(prompts) / step_s
    said = [[token for token, _ in answer] for answer in stamped]
    return Speed("repro", len(prompts), prefill.tolist(), decode.tolist(), said)


async def _answer(engine: Engine, name: str, prompt: tuple[int, ...], tokens: int) -> AsyncIterator[tuple[int, float]]:
    """Yield each token with the wall time at which it came."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    async for update in engine.generate(GenerateRequest(name, prompt, sampling)):
        for token in update.tokens:
            yield token, time.perf_counter()


async def _all_of(answer: AsyncIterator[tuple[int, float]]) -> list[tuple[int, float]]:
    return [each async for each in answer]


# -- transformers --------------------------------------------------------------------------------------


@torch.inference_mode()
def reference_speeds(prompts: Sequence[tuple[int, ...]]) -> list[Speed]:
    """Return transformers' speed with the first prompt alone, and with all prompts in one batch."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    model = transformers.GlmMoeDsaForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    model(torch.tensor([prompts[0][:600]]), logits_to_keep=1)
    prefill, caches, firsts = [], [], []
    for prompt in prompts:  # a batch of 16 prompts at once would take 36 GB for its index scores
        start_s = time.perf_counter()
        output = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        firsts.append(output.logits[:, -1].argmax(-1))
        prefill.append(len(prompt) / (time.perf_counter() - start_s))
        caches.append(output.past_key_values)
    alone = _faster(model, caches[:1], firsts[:1], prefill[:1])
    return [alone, _faster(model, caches, firsts, prefill)] if len(prompts) > 1 else [alone]


def _faster(model: Any, caches: list[Any], firsts: list[torch.Tensor], prefill: Rates) -> Speed:
    speeds = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        decode, answers = _decode(model, _joined(caches), torch.cat(firsts), REFERENCE_STEPS[len(caches) == 1])
        speeds.append(Speed(f"transformers, {attention}", len(caches), prefill, decode, answers))
    return max(speeds, key=lambda speed: speed.decode_median)


def _joined(caches: list[Any]) -> Any:
    """Return one cache whose rows are the given ones'."""
    joined = copy.deepcopy(caches[0])
    for number, layer in enumerate(joined.layers):
        for name in ("keys", "values", "indexer_keys"):
            setattr(layer, name, torch.cat([getattr(cache.layers[number], name) for cache in caches]))
    return joined


def _decode(model: Any, cache: Any, tokens: torch.Tensor, steps: int) -> tuple[Rates, Answers]:
    answers, rates = [tokens], []
    for _ in range(WARM_UP_STEPS + steps):
        start_s = time.perf_counter()
        output = model(answers[-1][:, None], past_key_values=cache)
        answers.append(output.logits[:, -1].argmax(-1))
        rates.append(len(tokens) / (time.perf_counter() - start_s))
    return rates[WARM_UP_STEPS:], torch.stack(answers, 1).tolist()


# -- watching ------------------------------------------------------------------------------------------


@dataclass
class Stopwatch:
    """Seconds spent in functions, by label; a timed function inside another counts for itself only."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner_s: list[float] = field(default_factory=list)

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with the watch on it."""
        self.seconds.setdefault(label, 0.0)

        def run(*arguments: Any, **keywords: Any) -> Any:
            start_s = time.perf_counter()
            self._inner_s.append(0.0)
            try:
                return function(*arguments, **keywords)
            finally:
                elapsed_s = time.perf_counter() - start_s
                self.seconds[label] += elapsed_s - self._inner_s.pop()
                if self._inner_s:
                    self._inner_s[-1] += elapsed_s

        return run


WATCHED: tuple[tuple[str, type, tuple[str, ...]], ...] = (
    ("ordering", OrderingDetector, ("feed",)),
    ("ownership", OwnershipDetector, ("feed",)),
    ("canary: the stamps of each read, inside the stack", StepReads, ("index", "latents", "record_store")),
    ("canary: the stamps of each read, inside the stack", ReadCheck, ("step",)),
    ("canary: the detector", CanaryDetector, ("feed",)),
    ("garbled", Garbled, ("__init__", "feed", "close")),
    ("repetition", Repetition, ("__init__", "feed", "close")),
    ("rare_tokens", RareTokens, ("__init__", "feed", "close")),
    ("what was exercised", ExerciseMeter, ("feed",)),
    ("event log and fingerprint", RunFolder, ("emit",)),
    ("oracle: clean decodes after the load", CleanDecoder, ("check",)),
)


@contextmanager
def watch() -> Iterator[Stopwatch]:
    """Put a stopwatch on everything that watches a run."""
    stopwatch = Stopwatch()
    with ExitStack() as patches:
        for label, owner, names in WATCHED:
            for name in names:
                function = stopwatch.timed(label, getattr(owner, name))
                # A plain function, so that it becomes a method.
                patches.enter_context(mock.patch.object(owner, name, function))
        yield stopwatch


def watched_run(turns: int | None) -> tuple[Stopwatch, float]:
    """Run the scenario, with fewer turns if asked to; return the stopwatch and the seconds of the whole run."""
    scenario = scenarios.find(SCENARIO)
    if turns is not None:
        scenario = msgspec.structs.replace(scenario, load=msgspec.structs.replace(scenario.load, turns=turns))
    with tempfile.TemporaryDirectory() as root, watch() as stopwatch:
        start_s = time.perf_counter()
        run_scenario(scenario, RunOptions(SEED), root=Path(root), utc=datetime.now(UTC))
        return stopwatch, time.perf_counter() - start_s


# -- the tables ----------------------------------------------------------------------------------------


def spread(samples: Rates) -> str:
    """Return the median, and the 10th to the 90th percentile."""
    low, middle, high = np.quantile(samples, [0.1, 0.5, 0.9])
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def speeds(alone: Speed, ours: Speed, theirs: list[Speed], plan: argparse.Namespace) -> Iterator[Table | str]:
    """Yield both sides, what their quotients are, and whether they said the same."""
    load = os.getloadavg()[0]
    table = Table(title=f"{plan.context} tokens of context, {plan.threads} thread(s), load average {load:.1f}")
    for column in ("engine", "rows", "decode tokens/s", "prefill tokens/s"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for speed in (alone, ours, *theirs):
        table.add_row(speed.name, str(speed.rows), spread(speed.decode), spread(speed.prefill))
    yield table
    for speed, goal in zip(theirs, (GOAL_BATCH_1, GOAL_BATCH_ALL), strict=False):
        quotient = ours.decode_median / speed.decode_median
        word = "reached" if quotient >= goal else "MISSED"
        judged = f" (goal at {GOAL_SESSIONS}: at least {goal:g}; {word})" if ours.rows == GOAL_SESSIONS else ""
        yield f"decode: {ours.rows} sessions of ours are {quotient:.1f} times as fast as batch {speed.rows}{judged}"
    if theirs:
        pairs = list(zip(ours.answers, theirs[-1].answers, strict=False))
        count = min(len(pairs[0][0]), len(pairs[0][1]))
        same = sum(mine[:count] == other[:count] for mine, other in pairs)
        yield (
            f"the first {count} tokens are the same in {same} of {len(pairs)} sessions "
            "(index scores tie often, and transformers breaks ties by chance)"
        )


def shares(stopwatch: Stopwatch, run_s: float) -> Table:
    """Return what each watcher took of the run."""
    table = Table(title=f"{SCENARIO}, seed {SEED}: {run_s:.0f} s from the sessions to the verdict")
    table.add_column("of it")
    for column in ("seconds", "share"):
        table.add_column(column, justify="right")
    add = partial(_add_share, table, run_s)
    for label, seconds in stopwatch.seconds.items():
        add(label, seconds)
    add("the rest: model, engine, simulation, HTTP, client", run_s - sum(stopwatch.seconds.values()))
    table.add_section()
    online = {label: s for label, s in stopwatch.seconds.items() if not label.startswith("oracle")}
    add("all detectors and the log, while the load runs", sum(online.values()))
    return table


def _add_share(table: Table, run_s: float, label: str, seconds: float) -> None:
    table.add_row(label, f"{seconds:.2f}", f"{seconds / run_s:.1%}")


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=GOAL_SESSIONS)
    parser.add_argument("--context", type=int, default=3000, help="tokens of each session's prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each of our answers")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--no-reference", action="store_true", help="leave transformers out")
    parser.add_argument("--no-watching", action="store_true", help="leave out what the detectors cost")
    parser.add_argument("--turns", type=int, help="ask fewer turns in the watched run (its own number: 5)")
    add_record(parser)
    plan = parser.parse_args()
    torch.set_num_threads(plan.threads)
    checkpoint = load_checkpoint(CONFIGS["tiny-hicache"])
    prompts = contexts(checkpoint.tokenizer, plan.sessions, plan.context)
    alone, ours = (our_speed(checkpoint, part, plan.tokens) for part in (prompts[:1], prompts))
    parts = list(speeds(alone, ours, [] if plan.no_reference else reference_speeds(prompts), plan))
    decode = {speed.rows: speed.decode_median for speed in (alone, ours)}
    parts += floor.lines(checkpoint.model.weights, plan.context, decode, float(np.median(ours.prefill)))
    if not plan.no_watching:
        torch.set_num_threads(1)
        parts.append(shares(*watched_run(plan.turns)))
    show(plan, *parts)


if __name__ == "__main__":
    main()
