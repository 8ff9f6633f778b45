"""Measures clean answers: `python -m tests.bench.clean_answers [--sessions 40]`.

Agent sessions are served together by the correct stack: chunked prefill, mixed batches, prefix hits,
evictions, load-backs. Then every turn is decoded again alone, token by token, on a cache of its own.
Printed: how many answers are equal token for token, how many have equal latents and index keys bit for
bit, how many are exactly the right answer (free-running, greedy), and what the text detectors say.
"""

import argparse
import asyncio
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint

from repro.base.clock import run_virtual
from repro.base.probe import Event, NullProbes
from repro.record.exercised import Exercised, ExerciseMeter
from repro.run.answer_detectors import AnswerDetectors, client_text, vocabulary_of
from repro.run.checkpoint import Checkpoint, load_checkpoint
from repro.run.judge.clean_decode import CleanDecoder
from repro.scenario.sessions import last_turns
from repro.serve.config import EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import Engine
from repro.serve.kv.pool import COMPONENTS, KVPool
from repro.serve.sched.request import Request
from repro.serve.types import GenerateRequest, SamplingParams
from repro.trace.format import Session
from repro.trace.synth import TRAINED_KINDS, synthesise
from repro.train.data import openai_message, openai_messages
from tests.bench.results import add_record, show

SEED = 20261125
TURNS = 5  # of each session, its last ones
PROMPT_TOKENS = (2048, 8192)
ANSWER_TOKENS_MAX = 256
GAP_S = 4.0  # between two turns, times what the session draws
CONFIG = EngineConfig(
    name="clean-answers", device_pages=512, host_pages=4096, rows=16, context_tokens=12_288, free_list="fifo"
)  # fmt: skip


@dataclass
class Turn:
    """One turn: what was asked, what is right, what was served."""

    kind: str
    request: GenerateRequest
    right: list[int]  # without the end token
    served: tuple[int, ...] = ()
    served_bits: list[str] = field(default_factory=list)  # digests by layer and component
    alone: tuple[int, ...] = ()
    alone_bits: list[str] = field(default_factory=list)
    exact: bool = False
    convicted: list[str] = field(default_factory=list)


@dataclass
class Measured:
    """All turns, and what the serving of them exercised."""

    turns: list[Turn]
    exercised: Exercised


class _Meter(NullProbes):
    def __init__(self) -> None:
        self.meter = ExerciseMeter()

    def emit(self, event: Event) -> None:
        self.meter.feed(event)


def digests(pool: KVPool, slots: torch.Tensor) -> list[str]:
    """Return a digest of the rows in these slots, of each layer and component."""
    rows = [pool.flat(component, layer)[slots] for layer in range(pool.layers) for component in COMPONENTS]
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in rows]


def sessions_of(count: int, turns: int, prompt_tokens: tuple[int, int]) -> Iterator[tuple[str, Session]]:
    """Yield sessions of all kinds, their last turns at lengths spread over the range."""
    for index, target in enumerate(np.linspace(*prompt_tokens, count).astype(int).tolist()):
        kind = TRAINED_KINDS[index % len(TRAINED_KINDS)]
        session = synthesise(kind, SEED, index, prompt_tokens_target=target)
        yield kind, last_turns(session, turns)


def turns_of(kind: str, session: Session, checkpoint: Checkpoint) -> Iterator[Turn]:
    """Yield a session's turns with the right answer of each."""
    encode = checkpoint.encoder.encode_chat
    for number, turn in enumerate(session.turns):
        asked = openai_messages(session, number) + [openai_message(message) for message in turn.messages]
        prompt = encode(asked, session.tools)
        whole = encode(openai_messages(session, number + 1), session.tools, add_generation_prompt=False)
        assert whole[: len(prompt)] == prompt, "the right answer does not continue the prompt"
        sampling = SamplingParams(max_tokens=ANSWER_TOKENS_MAX)
        request = GenerateRequest(f"{session.id}:{number}", tuple(prompt), sampling)
        yield Turn(kind, request, whole[len(prompt) :])


def keep_bits(engine: Engine, turns: dict[str, Turn]) -> None:
    """Have the engine keep the digests of a request's rows when it gives them back."""
    releases, pool = engine.scheduler.release, engine.cache._pools["device"]
    release = releases.release

    def kept(request: Request) -> None:
        stored = np.arange(len(request.prompt) + len(request.output) - 1)  # the last token has no row yet
        size = pool.page_tokens
        slots = np.asarray(request.pages)[stored // size] * size + stored % size
        turns[request.id].served_bits = digests(pool, torch.from_numpy(slots))
        release(request)

    releases.release = kept  # type: ignore[method-assign]


async def serve(engine: Engine, sessions: list[list[Turn]], concurrency: int) -> None:
    """Serve all sessions, `concurrency` at once."""
    keep_bits(engine, {turn.request.id: turn for turns in sessions for turn in turns})
    running = asyncio.create_task(engine.run())
    free = asyncio.Semaphore(concurrency)

    async def one(number: int, turns: list[Turn]) -> None:
        async with free:
            for turn in turns:
                await asyncio.sleep(GAP_S * (1 + number % 7))
                turn.served = tuple([t async for update in engine.generate(turn.request) for t in update.tokens])

    await asyncio.gather(*(one(number, turns) for number, turns in enumerate(sessions)))
    engine.stop()
    await running


def decode_alone(turn: Turn, decoder: CleanDecoder) -> None:
    """Fill in what a lone decode says, and its rows."""
    turn.alone = decoder.answer(turn.request)
    turn.alone_bits = digests(decoder.pool, torch.arange(len(turn.request.tokens) + len(turn.alone) - 1))


def measure(
    count: int,
    *,
    turns: int = TURNS,
    prompt_tokens: tuple[int, int] = PROMPT_TOKENS,
    concurrency: int = 16,
    config: EngineConfig = CONFIG,
) -> Measured:
    """Serve `count` sessions of so many turns and decode all answers again."""
    checkpoint = load_checkpoint(config)
    model, encoder = checkpoint.model, checkpoint.encoder
    assert model.weights is not None
    made = sessions_of(count, turns, prompt_tokens)
    sessions = [list(turns_of(kind, session, checkpoint)) for kind, session in made]
    probes = _Meter()
    with torch.inference_mode():
        device = SimDevice(probes)
        run_virtual(serve(Engine(config, model, device, probes=probes), sessions, concurrency), device)
    decoder = CleanDecoder(model.weights, config.context_tokens, model.eos)
    judges = AnswerDetectors(vocabulary_of(checkpoint.tokenizer, model.shape.vocab_size, model.eos))
    measured = [turn for session in sessions for turn in session]
    for turn in measured:
        decode_alone(turn, decoder)
        answer = [token for token in turn.served if token not in model.eos]
        turn.exact = answer == turn.right
        turn.convicted = judges.convicting(
            encoder.decode(turn.request.tokens), client_text(encoder.decode(answer)), answer
        )
    return Measured(measured, probes.meter.counts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    add_record(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    measured = measure(arguments.sessions)
    table = Table("kind", "turns", "prompt tokens", "equal to lone decode", "bits equal", "exact", "convicted")
    for kind in (*TRAINED_KINDS, "all"):
        rows = [turn for turn in measured.turns if kind in (turn.kind, "all")]
        lengths = [len(turn.request.tokens) for turn in rows]
        table.add_row(
            kind,
            str(len(rows)),
            f"{min(lengths)} to {max(lengths)}",
            str(sum(turn.served == turn.alone for turn in rows)),
            str(sum(turn.served_bits == turn.alone_bits for turn in rows)),
            f"{sum(turn.exact for turn in rows)} ({_interval(sum(turn.exact for turn in rows), len(rows))})",
            str(sum(bool(turn.convicted) for turn in rows)),
        )
    exercised = f"exercised: {msgspec.to_builtins(measured.exercised)}; {time.perf_counter() - start:.0f} s"
    convicted = (f"convicted by {turn.convicted}: {turn.request.id}" for turn in measured.turns if turn.convicted)
    show(arguments, table, exercised, *convicted)


def _interval(count: int, of: int) -> str:
    low, high = proportion_confint(count, of, method="beta")
    return f"{count / of:.1%}, 95 % {low:.1%} to {high:.1%}"


if __name__ == "__main__":
    main()
