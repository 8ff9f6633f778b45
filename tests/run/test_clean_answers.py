"""What is served is what a lone decode says, bit for bit, whatever else was in the batch and the cache."""

import torch

from repro.serve.config import EngineConfig
from tests.bench.clean_answers import measure

SMALL = EngineConfig(device_pages=64, host_pages=400, rows=4, context_tokens=2048, chunk_tokens=200, free_list="fifo")


def test_served_answers_and_their_rows_equal_the_lone_decode_bit_for_bit() -> None:
    torch.set_num_threads(1)
    measured = measure(7, turns=3, prompt_tokens=(1000, 1500), concurrency=7, config=SMALL)
    assert measured.exercised.load_backs > 0 and measured.exercised.evictions > 0
    for turn in measured.turns:
        assert turn.served == turn.alone, turn.request.id
        assert turn.served_bits == turn.alone_bits, turn.request.id
        assert not turn.convicted, turn.request.id
