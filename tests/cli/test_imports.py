"""A command loads what it runs, and nothing heavy besides: most of a short command's time would be imports."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "altair", "httpx", "jinja2", "llvmlite", "numba", "pandas", "pyarrow", "ray", "safetensors", "scipy", "sqlite3",
    "starlette", "statsmodels", "tokenizers", "torch", "transformers", "uvicorn", "vl_convert",
}  # fmt: skip
SCENARIOS = {"numpy", "repro.scenario.schema", "detectors.registry"}
LOADED = """
import sys

from repro.__main__ import main

try:
    main()
finally:
    sys.stderr.write("loaded: " + " ".join(sys.modules))
"""


@pytest.mark.parametrize(
    ("words", "exit_code", "unloaded"),
    [
        ("--help", 0, HEAVY | SCENARIOS),
        ("run --help", 0, HEAVY | SCENARIOS),
        ("faults", 0, HEAVY | SCENARIOS),
        ("list", 0, HEAVY),
        ("run pd_scaling_pain --control", 2, HEAVY),
        ("run hicache_early_read --seeds 3", 2, HEAVY),
        ("detect answers.txt", 1, HEAVY | {"repro.scenario.schema"}),
        ("detect --events events.jsonl", 3, HEAVY | {"repro.scenario.schema"}),
    ],
)
def test_a_short_command_loads_nothing_heavy(words: str, exit_code: int, unloaded: set[str], tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("The page is released twice, so two rows share it. " * 40)
    (tmp_path / "events.jsonl").write_text("")
    command = [sys.executable, "-c", LOADED, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code
    loaded = set(done.stderr.rpartition("loaded: ")[2].split())
    assert "repro.cli.runs" in loaded and not loaded & unloaded


STAMPS = """
import sys, tempfile
from pathlib import Path
from tests.search.race import EARLY_READ, played

assert EARLY_READ in played(Path(tempfile.mkdtemp())).signatures
assert not {"torch._C", "numba"} & sys.modules.keys(), "a schedule in stamps computes nothing"
"""


def test_a_schedule_in_stamps_loads_neither_torch_nor_a_compiler() -> None:
    subprocess.run([sys.executable, "-c", STAMPS], cwd=Path(__file__).parents[2], check=True)
