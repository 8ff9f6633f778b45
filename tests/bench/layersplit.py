"""Serves 200 agent turns with one engine and with 1 to 4 ranks, and compares: `python -m tests.bench.layersplit`.

A model of random weights, with tensors; prompts grow, share prefixes and are evicted. Printed: for every
arrangement how many answers are those of one engine, token for token, and what the detectors found.
"""

import argparse

import torch
from rich.table import Table

from tests.bench.results import add_record, show
from tests.serve.layersplit.turns import TURNS, serve_turns, served_by, turn_config


def main() -> None:
    """Print a line an arrangement while they run, and the table in the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    add_record(parser)
    given = parser.parse_args()
    sessions = given.turns // TURNS
    table = Table("ranks", "layers", "HiCache", "answers equal", "tokens evicted", "loaded back", "detectors")
    torch.set_num_threads(1)
    for hicache in (True, False):
        _, alone = serve_turns(turn_config(0, hicache=hicache), sessions)
        for ranks in (1, 2, 3, 4):
            for split in (False, True):
                stack, answers = serve_turns(turn_config(ranks, hicache=hicache, split=split), sessions)
                stack.assert_clean()
                stats = served_by(stack).stats()
                equal = sum(answers[each] == alone[each] for each in alone)
                row = (
                    str(ranks),
                    "split" if split else "replicated",
                    "yes" if hicache else "no",
                    f"{equal} of {len(alone)}",
                    str(stats.evicted_tokens_total),
                    str(stats.load_back_tokens_total),
                    "silent",
                )
                print(*row, sep="  ", flush=True)
                table.add_row(*row)
    show(given, table)


if __name__ == "__main__":
    main()
