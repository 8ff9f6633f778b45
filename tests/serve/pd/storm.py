"""A storm over a disaggregated stack: prompts that share prefixes, impatient clients, and faults.

Every request must end with an answer or an abort, and at the end every page is free, cached or quarantined.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from repro.base import rng
from repro.fault.kinds import KINDS, Kill
from repro.fault.plan import Fault, When
from repro.serve.guards import Guards
from tests.serve.engine.builders import make_request, prompt, stamps_answer
from tests.serve.pd.builders import PdStack, pd_config
from tests.serve.spec.builders import drafting_model

FAMILIES = 3
PROMPT_TOKENS = (5, 24)
ANSWER_TOKENS_MAX = 6
PATIENCE_S = (0.001, 0.25)
GAP_S = 0.2


@dataclass
class Seen:
    """How the requests of a storm ended."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: int = 0  # answers that are not the model's


def fault(at: str, kind: str, probability: float, *numbers: float) -> Fault:
    """Return a fault of the plan, with the number that its kind needs."""
    return Fault(at, KINDS[kind](*numbers), When(probability))


LEGAL: dict[str, tuple[Fault, ...]] = {
    "none": (),
    "late writes": (fault("transfer.write", "delay", 0.2, 30_000),),
    "writes out of order": (fault("transfer.write", "reorder", 0.5),),
    "late messages": tuple(
        fault(f"pd.{kind}", "delay", 0.3, 60_000) for kind in ("destination", "done", "abort", "safe")
    ),
    "lost messages": tuple(fault(f"pd.{kind}", "drop", 0.05) for kind in ("destination", "done", "abort", "safe")),
    "doubled messages": tuple(
        fault(f"pd.{kind}", "duplicate", 0.3) for kind in ("destination", "done", "abort", "safe")
    ),
    "failed writes": (fault("transfer.latent", "fail", 0.01), fault("transfer.index", "fail", 0.01)),
    "a worker dies": (Fault("pd.prefill_worker", Kill(), When(skip=200, times=1)),),
}
LEGAL["everything"] = tuple(each for faults in LEGAL.values() for each in faults)


def storm(
    requests: int,
    *,
    clients: int = 6,
    guards: Guards | None = None,
    faults: tuple[Fault, ...] = (),
    seed: int = 0,
    impatient: float = 0.3,
    pages: int = 24,
    drafts: int = 0,
    **pd: float,
) -> tuple[PdStack, Seen]:
    """Serve so many requests and return the stack and how they ended."""
    settings = {"prefill": 2, "decode": 1, "transfer_timeout_s": 0.4, "destination_timeout_s": 0.4,
                "ack_timeout_s": 0.1} | pd  # fmt: skip
    stack = PdStack(
        pd_config(pages=pages, drafts=drafts, **settings), drafting_model(), guards=guards, faults=faults, seed=seed
    )
    seen = Seen()

    async def client(number: int) -> None:
        draw = rng.generator(seed, "storm", number)
        for turn in range(number, requests, clients):
            await _one(stack, seen, draw, turn, impatient)

    async def main(_: PdStack) -> None:
        await asyncio.gather(*(client(number) for number in range(clients)))

    stack.run(main)
    return stack, seen


async def _one(stack: PdStack, seen: Seen, draw: np.random.Generator, turn: int, impatient: float) -> None:
    await asyncio.sleep(float(draw.exponential(GAP_S)))
    tokens = prompt(int(draw.integers(FAMILIES)), int(draw.integers(*PROMPT_TOKENS)))
    request = make_request(f"r{turn}", tokens, answer=int(draw.integers(1, ANSWER_TOKENS_MAX + 1)))
    patience_s = float(draw.uniform(*PATIENCE_S)) if draw.random() < impatient else None
    try:
        async with asyncio.timeout(patience_s):
            answer = await stack.ask(request)
    except TimeoutError:
        seen.ends["left"] += 1
        return
    seen.ends[answer.last.finish or ""] += 1
    if answer.last.finish == "length" and answer.tokens != stamps_answer(tokens, request.sampling.max_tokens):
        seen.wrong += 1
