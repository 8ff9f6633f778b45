"""Measures the nonces: `python -m tests.bench.leaks [--seeds 12]`, which takes minutes of processor time.

Sessions that ask for their own ticket (`synth:ticket`) are served by the bundled stack over its chat API. In one of
four requests, drawn by the seed, the answer that another session's prompt has gets out instead, as when a client is
given another one's cache or stream. Printed: in how many of those a text holds the other's nonce and is found, and
how many of the others are convicted.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator

import msgspec
import torch
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint

from detectors.answers.leak import CrossPromptLeak
from repro.base.clock import run_virtual
from repro.base.rng import uniform
from repro.load.asgi import AsgiStreamTransport
from repro.load.client import open_client
from repro.load.driver import drive
from repro.load.listener import LoadListener, OnlineFinding, TextDetector
from repro.load.plan import LoadPlan
from repro.record.requests import SentRequest
from repro.run.answer_detectors import AnswerDetectors, nonces_of
from repro.run.checkpoint import load_checkpoint
from repro.scenario.schema import LoadSpec
from repro.scenario.sessions import sessions_of
from repro.serve.config import EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.server.app import create_app
from repro.serve.stack import build
from repro.serve.types import GenerateRequest, Update
from tests.bench.results import add_record, show

CONFIG = EngineConfig(name="leaks", device_pages=200, host_pages=400, context_tokens=1024, rows=10)
LOAD = LoadSpec(sessions=10, trace="synth:ticket", turns=4, prompt_tokens=700, answer_tokens_max=128)
LEAKED_SHARE = 0.25


class Told(msgspec.Struct, frozen=True):
    """One answer: whether it is another session's, whether that one's nonce is in it, whether it was convicted."""

    foreign: bool
    holds_nonce: bool
    convicted: bool


class Judging(LoadListener):
    """Judges the texts of all answers."""

    def __init__(self, judges: AnswerDetectors) -> None:
        self.requests: list[SentRequest] = []
        self.findings: set[tuple[str, str]] = set()
        self._judges = judges

    def text_detectors(self, request: str, prompt: str) -> list[TextDetector]:
        return self._judges(request, prompt)

    def on_finding(self, request: str, finding: OnlineFinding) -> None:
        self.findings.add((request, finding.detector))

    def on_request(self, request: SentRequest) -> None:
        self.requests.append(request)


def serve(seed: int) -> list[Told]:
    """Serve the sessions of a seed and judge their answers."""
    torch.set_num_threads(1)
    checkpoint, device = load_checkpoint(CONFIG), SimDevice()
    sessions = sessions_of(LOAD, seed)
    nonces = {session.id: session.nonce or "" for session in sessions}
    judges = AnswerDetectors(None, nonces_of(sessions))
    latest: dict[str, GenerateRequest] = {}  # of each session
    foreign: dict[str, str] = {}  # request -> the session whose answer it is given
    heard = Judging(judges)

    async def story() -> None:
        engine = build(CONFIG, checkpoint.model, device)
        generate = engine.generate

        def leaking(request: GenerateRequest) -> AsyncIterator[Update]:
            session = request.id.rpartition(":")[0]
            others = [each for each in latest if each != session]
            latest[session] = request
            if others and uniform(seed, "leak", request.id) < LEAKED_SHARE:
                other = others[int(uniform(seed, "whose", request.id) * len(others))]
                foreign[request.id] = other
                return generate(msgspec.structs.replace(request, tokens=latest[other].tokens))
            return generate(request)

        engine.generate = leaking  # type: ignore[method-assign, assignment]
        app = create_app(engine, checkpoint.tokenizer, clock=asyncio.get_running_loop().time)
        client = open_client("http://bundled", transport=AsgiStreamTransport(app), read_timeout_s=None)
        running = asyncio.create_task(engine.run())
        plan = LoadPlan(concurrency=LOAD.sessions, seed=seed, history="recorded", answer_tokens_max=128)
        await drive(sessions, client, plan, heard)
        engine.stop()
        await running

    with torch.inference_mode():
        run_virtual(story(), device)
    return [
        Told(
            record.request in foreign,
            record.request in foreign and nonces[foreign[record.request]] in record.text,
            (record.request, CrossPromptLeak.name) in heard.findings,
        )
        for record in heard.requests
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    add_record(parser)
    given = parser.parse_args()
    told = [each for seed in range(given.seeds) for each in serve(seed)]
    sides = {
        "another session's, with its nonce": [each for each in told if each.holds_nonce],
        "another session's, all": [each for each in told if each.foreign],
        "the session's own": [each for each in told if not each.foreign],
    }
    table = Table("answers", "number", "convicted", "95 %")
    for name, answers in sides.items():
        count = sum(each.convicted for each in answers)
        low, high = proportion_confint(count, len(answers), method="beta")
        table.add_row(name, str(len(answers)), str(count), f"{low:.1%} to {high:.1%}")
    show(given, table)


if __name__ == "__main__":
    main()
