"""Two real processes, one rank each, over gloo; run by `test_distributed`."""

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from repro.base.clock import run_virtual
from repro.base.probe import NullProbes
from repro.serve.device.sim import SimDevice
from repro.serve.engine import Engine, LoadedModel
from repro.serve.guards import Guards
from repro.serve.kv.pool import Names, PageSets
from repro.serve.layersplit.collective import CollectiveError
from repro.serve.layersplit.partition import sizes
from repro.serve.layersplit.rank import Rank
from tests.serve.engine.builders import VOCABULARY, make_request
from tests.serve.layersplit.gloo import OwnRank, TorchCollective
from tests.serve.layersplit.turns import Answers, model_in, turn_config

PROMPTS = 4
TIMEOUT_S = 20


def questions() -> list[tuple[int, ...]]:
    """Return prompts that share a prefix, longer than a chunk."""
    shared = [(5 * place + place * place) % VOCABULARY for place in range(30)]
    return [tuple([*shared, *((29 * n + place) % VOCABULARY for place in range(7 + n))]) for n in range(PROMPTS)]


async def ask_all(engine: Engine) -> Answers:
    """Ask twice for everything, all at once: what is planned depends on nothing but that."""
    answers: Answers = {}

    async def one(name: str, prompt: tuple[int, ...]) -> None:
        tokens = [update.tokens async for update in engine.generate(make_request(name, prompt, answer=4))]
        answers[name] = tuple(token for part in tokens for token in part)

    serving = asyncio.create_task(engine.run())
    for turn in range(2):
        asking = asyncio.gather(*(one(f"{n}.{turn}", prompt) for n, prompt in enumerate(questions())))
        await asyncio.wait((asking, serving), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        await asking
    engine.stop()
    await serving
    return answers


def rank_engine(device: SimDevice, collective: TorchCollective, model: LoadedModel) -> Engine:
    """Return the engine of this process."""
    config, probes = turn_config(collective.ranks, hicache=False), NullProbes()
    fit = sizes(config, model.shape.num_hidden_layers)
    config = msgspec.structs.replace(config, device_pages=fit.device_pages, host_pages=fit.host_pages)
    host, names = device.host(f"R{collective.rank}"), Names(PageSets(probes))
    rank = Rank(config, model.shape, model.weights, host, collective, Guards(), names, probes)
    return Engine(config, model, host, names=names, executor=OwnRank(rank, config.page_tokens))


def main(rank: int, folder: Path, out: Path, dies: bool) -> None:
    """Serve the model in `folder` as a rank and write the answers, or the error, into `out`."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_S)
    )
    device = SimDevice()
    if dies and rank == 1:
        os._exit(1)
    try:
        with torch.inference_mode():
            answers = run_virtual(ask_all(rank_engine(device, TorchCollective(), model_in(folder))), device)
    except CollectiveError as error:
        out.write_text(f"CollectiveError: {error}")
        os._exit(3)  # the other process is gone: nobody to say goodbye to
    out.write_bytes(msgspec.json.encode(answers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "dies")
