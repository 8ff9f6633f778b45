"""Measures throughput by topology: `python -m tests.bench.pd [--sessions 8] [--turns 5] [--drafts 0 1 3]`.

The same agent sessions, all at once, are served by one engine, by one prefill and one decode worker, and by
two and one; with and without drafts. Printed: answer tokens per second of virtual time over the whole run (what
`h100x8-glm5` prices; each worker is a machine of its own, so compare per machine), the same per worker, TTFT,
and how many answers are the same as one engine's. Simulated, all of it.
"""

import argparse
import asyncio
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from rich.table import Table

from repro.base.clock import run_virtual
from repro.run.checkpoint import Checkpoint, load_checkpoint
from repro.serve.config import PdConfig
from repro.serve.device.sim import SimDevice
from repro.serve.stack import Stack, build
from repro.serve.types import GenerateRequest
from tests.bench.clean_answers import CONFIG, sessions_of, turns_of
from tests.bench.results import add_record, show

TOPOLOGIES: dict[str, PdConfig | None] = {
    "one engine": None,
    "1P1D": PdConfig(prefill=1, decode=1),
    "2P1D": PdConfig(prefill=2, decode=1),
}


@dataclass
class Served:
    """One run."""

    answers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    first_s: list[float] = field(default_factory=list)
    virtual_s: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers.values()))


async def ask(stack: Stack, device: SimDevice, request: GenerateRequest, served: Served) -> None:
    """Stream one answer."""
    tokens: list[int] = []
    asked_us = device.now_us
    async for update in stack.generate(request):
        if update.tokens and not tokens:
            served.first_s.append((device.now_us - asked_us) / 1e6)
        tokens += update.tokens
    served.answers[request.id] = tuple(tokens)


def serve(checkpoint: Checkpoint, sessions: list[list[GenerateRequest]], pd: PdConfig | None, drafts: int) -> Served:
    """Serve all sessions at once, the turns of each one after the other."""
    device, served = SimDevice(), Served()
    stack = build(msgspec.structs.replace(CONFIG, speculative_drafts=drafts, pd=pd), checkpoint.model, device)

    async def session(requests: list[GenerateRequest]) -> None:
        for request in requests:
            await ask(stack, device, request, served)

    async def main() -> None:
        running = asyncio.create_task(stack.run())
        await asyncio.gather(*(session(requests) for requests in sessions))
        served.virtual_s = device.now_us / 1e6
        stack.stop()
        await running

    with torch.inference_mode():
        run_virtual(main(), device)
    return served


def main() -> None:
    """Print the table; exit 1 where answers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=[2048, 8192])
    parser.add_argument("--threads", type=int, default=1)
    add_record(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(CONFIG)
    made = sessions_of(arguments.sessions, arguments.turns, tuple(arguments.prompt_tokens))
    sessions = [[turn.request for turn in turns_of(kind, session, checkpoint)] for kind, session in made]
    table = Table(
        "topology", "drafts", "tokens", "tokens/virtual s", "per worker", "TTFT p50 s", "p95 s", "same answers"
    )
    first: Served | None = None
    failed = False
    for name, pd in TOPOLOGIES.items():
        for drafts in arguments.drafts:
            served = serve(checkpoint, sessions, pd, drafts)
            first = first or served
            same = sum(first.answers[request] == answer for request, answer in served.answers.items())
            failed |= same < len(first.answers)
            rate = served.tokens / served.virtual_s
            workers = 1 if pd is None else pd.prefill + pd.decode
            p50, p95 = np.quantile(served.first_s, (0.5, 0.95))
            table.add_row(
                name, str(drafts), str(served.tokens), f"{rate:.1f}", f"{rate / workers:.1f}", f"{p50:.2f}",
                f"{p95:.2f}", f"{same} of {len(first.answers)}",
            )  # fmt: skip
    show(arguments, table)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
