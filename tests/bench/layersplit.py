"""Serves 200 agent turns with one engine and with 1 to 4 ranks, and compares: `python -m tests.bench.layersplit`.

A model of random weights, with tensors; prompts grow, share prefixes and are evicted. Printed: for every
arrangement how many answers are those of one engine, token for token, and what the detectors found.
"""

import argparse

import torch

from tests.serve.layersplit.turns import TURNS, serve_turns, served_by, turn_config


def main() -> None:
    """Print one line an arrangement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    sessions = parser.parse_args().turns // TURNS
    torch.set_num_threads(1)
    for hicache in (True, False):
        _, alone = serve_turns(turn_config(0, hicache=hicache), sessions)
        for ranks in (1, 2, 3, 4):
            for split in (False, True):
                stack, answers = serve_turns(turn_config(ranks, hicache=hicache, split=split), sessions)
                stack.assert_clean()
                stats = served_by(stack).stats()
                print(
                    f"{ranks} ranks, {'split' if split else 'replicated'}, {'with' if hicache else 'without'} HiCache: "
                    f"{sum(answers[each] == alone[each] for each in alone)} of {len(alone)} answers equal, "
                    f"{stats.evicted_tokens_total} tokens evicted, {stats.load_back_tokens_total} loaded back, "
                    "detectors silent",
                    flush=True,
                )


if __name__ == "__main__":
    main()
