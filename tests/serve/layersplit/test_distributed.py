"""The same ranks as real processes: gloo in place of the simulated collectives."""

import subprocess
import sys
from pathlib import Path

import msgspec
import torch

from repro.base.clock import run_virtual
from repro.serve.device.sim import SimDevice
from repro.serve.engine import Engine
from tests.serve.layersplit.processes import ask_all
from tests.serve.layersplit.turns import model_in, turn_config, write_random_model

LIMIT_S = 240  # far beyond what it takes: a hang must not hang the suite


def run_processes(folder: Path, how: str) -> list[str]:
    """Run both ranks to their end and return what they wrote."""
    out = [folder / f"rank{rank}" for rank in range(2)]
    write_random_model(folder)
    command = [sys.executable, "-m", "tests.serve.layersplit.processes"]
    started = [subprocess.Popen([*command, str(rank), str(folder), str(out[rank]), how]) for rank in range(2)]
    for process in started:
        process.wait(LIMIT_S)
    return [path.read_text() if path.exists() else "" for path in out]


def test_two_processes_answer_as_one_engine_token_for_token(tmp_path: Path) -> None:
    answers, device = run_processes(tmp_path, "lives"), SimDevice()
    with torch.inference_mode():
        alone = run_virtual(ask_all(Engine(turn_config(0, hicache=False), model_in(tmp_path), device)), device)
    for text in answers:
        assert msgspec.json.decode(text, type=dict[str, tuple[int, ...]]) == alone


def test_a_process_that_dies_is_a_clear_error_in_the_other(tmp_path: Path) -> None:
    survivor, dead = run_processes(tmp_path, "dies")
    assert dead == ""
    assert survivor.startswith("CollectiveError: rank 0 in the exchange of")
    assert "a rank has died or hangs: restart the stack" in survivor
