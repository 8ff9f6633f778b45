"""Runs a command of repro that a page quotes, and shows what it printed: `python -m tests.bench.commands NAME`.

`bench_layersplit` and `bench_layersplit_sensitivity` are the throughput study, `campaign` the first scenario's 20
seeds with and without the defect, `bank` and `clean` the nights of every race and of every control, `mutate` the stack
with one wait, record or guard less at a time. Each has a block of its own in RESULTS.md.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile

from tests.bench.results import add_record, record

COMMANDS = {
    "bench_layersplit": "repro bench layersplit --workers 1 --quiet",
    "bench_layersplit_sensitivity": "repro bench layersplit --workers 1 --sensitivity --quiet",
    "campaign": "repro campaign hicache_early_read --seeds 20 --workers 1 --quiet",
    "bank": "repro nightly --suite bank --workers 1 --quiet",
    "clean": "repro nightly --suite clean --workers 1 --quiet",
    "mutate": "repro mutate --workers 1 --quiet",
}


def main() -> None:
    """Print what the command printed; exit as it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=COMMANDS)
    add_record(parser)
    given = parser.parse_args()
    words = shlex.split(COMMANDS[given.name])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": os.getcwd(), "COLUMNS": "120"}
        ended = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
    print(ended.stdout)
    if given.record:
        record(given.name, COMMANDS[given.name], f"exit {ended.returncode}\n\n```\n{ended.stdout.rstrip()}\n```")
    sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
