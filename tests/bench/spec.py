"""Measures speculation: `python -m tests.bench.spec [--sessions 8] [--turns 5] [--drafts 0 1 2 3 5]`.

The same clean agent turns are served with each number of drafts k, a turn of every session at once: chunked
prefill, mixed batches, prefix hits. Printed for each k: tokens per second of a stream from when the last prompt of
its round is prefilled (median over the turns; virtual time is what `h100x8-glm5` prices, wall time is this
machine's), accept length (tokens per verify step), accept rate (share of drafts accepted), and how many answers
are the same as in the first run.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from rich.table import Table

from repro.base.clock import run_virtual
from repro.run.checkpoint import Checkpoint, load_checkpoint
from repro.serve.device.sim import SimDevice
from repro.serve.engine import Engine
from repro.serve.types import GenerateRequest, Speculation
from tests.bench.clean_answers import CONFIG, sessions_of, turns_of
from tests.bench.results import add_record, show

Stamp = tuple[int, float, float]  # tokens so far, virtual and wall seconds
ACCEPT_LENGTH_MIN = {3: 2.0}  # what the project asks of the bundled model, by k


@dataclass
class Served:
    """The turns of one run."""

    drafts: int
    answers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    speculation: list[Speculation] = field(default_factory=list)
    virtual_rates: list[float] = field(default_factory=list)  # tokens per second, one a turn
    wall_rates: list[float] = field(default_factory=list)

    @property
    def accept_lengths(self) -> list[float]:
        return [counts.accept_length for counts in self.speculation if counts.accept_length is not None]

    @property
    def accept_rate(self) -> float:
        return sum(c.accepted_drafts for c in self.speculation) / max(1, sum(c.drafts for c in self.speculation))

    @property
    def accept_length(self) -> float:
        return sum(c.completion_tokens for c in self.speculation) / sum(c.verify_steps for c in self.speculation)

    def add_round(self, streams: list[list[Stamp]]) -> None:
        """Note the speed of the streams of one round, from when all of them are decoding."""
        starts = [max(stamps[0][clock] for stamps in streams) for clock in (1, 2)]
        for stamps in streams:
            before = sum(stamp[1] <= starts[0] for stamp in stamps)
            tokens = stamps[-1][0] - stamps[before - 1][0]
            if tokens:
                self.virtual_rates.append(tokens / (stamps[-1][1] - starts[0]))
                self.wall_rates.append(tokens / (stamps[-1][2] - starts[1]))


async def ask(engine: Engine, device: SimDevice, request: GenerateRequest, served: Served) -> list[Stamp]:
    """Stream one answer; return when its tokens came and note its counts."""
    tokens: list[int] = []
    stamps: list[Stamp] = []
    async for update in engine.generate(request):
        tokens += update.tokens
        stamps.append((len(tokens), device.now_us / 1e6, time.perf_counter()))
    served.answers[request.id] = tuple(tokens)
    if update.speculation is not None:
        served.speculation.append(update.speculation)
    return stamps


def serve(checkpoint: Checkpoint, sessions: list[list[GenerateRequest]], drafts: int) -> Served:
    """Serve all sessions in rounds of one turn each."""
    device = SimDevice()
    engine = Engine(msgspec.structs.replace(CONFIG, speculative_drafts=drafts), checkpoint.model, device)
    served = Served(drafts)

    async def main() -> None:
        running = asyncio.create_task(engine.run())
        for turn in zip(*sessions, strict=True):
            served.add_round(await asyncio.gather(*(ask(engine, device, request, served) for request in turn)))
        engine.stop()
        await running

    with torch.inference_mode():
        run_virtual(main(), device)
    return served


def main() -> None:
    """Print the table; exit 1 where answers differ or the accept length is too small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1, 2, 3, 5])
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=[2048, 8192])
    parser.add_argument("--threads", type=int, default=1)
    add_record(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(CONFIG)
    made = sessions_of(arguments.sessions, arguments.turns, tuple(arguments.prompt_tokens))
    sessions = [[turn.request for turn in turns_of(kind, session, checkpoint)] for kind, session in made]
    runs = [serve(checkpoint, sessions, drafts) for drafts in arguments.drafts]
    table = Table("k", "turns", "tokens", "tokens/virtual s", "tokens/wall s", "accept length", "rate", "same answers")
    failed = False
    for run in runs:
        same = sum(run.answers[name] == answer for name, answer in runs[0].answers.items())
        tokens = sum(map(len, run.answers.values()))
        least, median = (np.quantile(run.accept_lengths, share) for share in (0, 0.5)) if run.drafts else (0.0, 0.0)
        table.add_row(
            str(run.drafts),
            str(len(run.answers)),
            str(tokens),
            f"{np.median(run.virtual_rates):.1f}",
            f"{np.median(run.wall_rates):.1f}",
            f"{run.accept_length:.2f} (of a turn: median {median:.2f}, least {least:.2f})" if run.drafts else "",
            f"{run.accept_rate:.3f}" if run.drafts else "",
            f"{same} of {len(run.answers)}",
        )
        failed |= same < len(run.answers) or run.drafts > 0 and run.accept_length < ACCEPT_LENGTH_MIN.get(run.drafts, 0)
    show(arguments, table)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
