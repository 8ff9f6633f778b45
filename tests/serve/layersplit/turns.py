"""Agent turns over a model of random weights, with tensors: prompts that grow, shared prefixes, evictions."""

import asyncio
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from repro.serve.config import EngineConfig, LayerSplitConfig
from repro.serve.engine import Engine, LoadedModel
from repro.serve.guards import Guards
from repro.serve.layersplit.engine import SplitEngine
from repro.serve.model.glm5 import load_model
from tests.serve.engine.builders import VOCABULARY, Stack, Watched, letters, make_config, make_request
from tests.serve.layersplit.builders import SplitStack

TURNS = 4  # of each session
Answers = dict[str, tuple[int, ...]]


@cache
def random_model() -> LoadedModel:
    """Return a model of five layers whose answers depend on all that it reads."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder))
        return model_in(Path(folder))


def write_random_model(folder: Path) -> None:
    """Write the checkpoint of that model."""
    from tests.serve.model.builders import TINY, make_reference  # imports transformers: four seconds

    make_reference(TINY | {"num_hidden_layers": 5, "index_topk": 16}).save_pretrained(folder)


def model_in(folder: Path) -> LoadedModel:
    """Return the model of such a checkpoint."""
    weights = load_model(folder)
    return LoadedModel("random", weights.config, weights, letters, frozenset())


def turn_config(ranks: int, *, hicache: bool = True, **split: Any) -> EngineConfig:
    """Return the configuration of one engine (`ranks` = 0), or of so many ranks, in which prefixes get evicted."""
    layersplit = LayerSplitConfig(ranks=ranks, **split) if ranks else None
    return make_config(
        numerics="tensors", page_tokens=8, device_pages=20, host_pages=64, context_tokens=80, chunk_tokens=24,
        rows=6, hicache=hicache, layersplit=layersplit,
    )  # fmt: skip


def serve_turns(config: EngineConfig, sessions: int, guards: Guards | None = None) -> tuple[Watched, Answers]:
    """Serve so many sessions of agent turns and return the stack and all answers."""
    kind = SplitStack if config.layersplit is not None else Stack
    stack = kind(config, random_model(), guards=guards)
    answers: Answers = {}

    async def session(number: int) -> None:
        await asyncio.sleep(0.05 * number)
        tokens = [(17 * (number % 3) + 5 * place + place * place) % VOCABULARY for place in range(26)]
        for turn in range(TURNS):
            request = make_request(f"s{number}.{turn}", tokens, answer=3)
            answers[request.id] = (await stack.ask(request)).tokens
            tokens += [*answers[request.id], *((29 * number + 7 * turn + place) % VOCABULARY for place in range(9))]
            await asyncio.sleep(0.3)

    async def main(_: Watched) -> None:
        await asyncio.gather(*(session(number) for number in range(sessions)))

    stack.run(main)
    return stack, answers


def served_by(stack: Watched) -> Engine:
    """Return the engine of a stack that has one."""
    assert isinstance(stack.serving, Engine | SplitEngine)
    return stack.serving
