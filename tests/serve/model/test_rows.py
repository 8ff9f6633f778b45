"""Products of whole tiles have the same bits for every number of rows and one or two threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from repro.serve.model.rows import ROW_TILE, by_input, pad_rows, padded_count, rotary_table, rotate_
from tests.serve.model.builders import threads


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(256, 292), (128, 1024), (512, 256), (256, 1536), (768, 256), (256, 8), (256, 2048), (128, 256), (256, 4096)],
)
def test_linear_rows_have_the_same_bits_in_any_number_of_tiles(inputs, outputs):
    generator = torch.Generator().manual_seed(0)
    weight = by_input(torch.randn(outputs, inputs, generator=generator))
    rows = torch.randn(33 * ROW_TILE, inputs, generator=generator)
    with threads(1):
        expected = functional.linear(rows, weight)
    for num_threads in (1, 2):
        with threads(num_threads):
            for tiles in (1, 2, 3, 5, 8, 17, 33):
                for first in {0, (33 - tiles) * ROW_TILE}:
                    part = slice(first, first + tiles * ROW_TILE)
                    assert torch.equal(functional.linear(rows[part].clone(), weight), expected[part])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="another BLAS, which cannot play another processor")
def test_bits_hold_on_a_processor_with_avx2_only():
    decode = "test_bits.py::test_decode_in_any_batch_gives_the_bits_of_prefill[bundled-6-2]"
    tests = [
        f"{__file__}::test_linear_rows_have_the_same_bits_in_any_number_of_tiles",
        str(Path(__file__).parent / decode),
    ]
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-m", "pytest", "-q", *tests]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("count", [1, ROW_TILE - 1, ROW_TILE, ROW_TILE + 1])
def test_padding_fills_the_last_tile_with_zeros(count):
    padded = pad_rows(torch.ones(count, 3))
    assert len(padded) == padded_count(count) == -(-count // ROW_TILE) * ROW_TILE
    assert padded[:count].eq(1).all() and padded[count:].eq(0).all()


def test_rotation_keeps_products_a_function_of_the_distance():
    table = rotary_table(8, 1e4, 64)
    query, key = torch.linspace(-1, 1, 8), torch.linspace(1, 2, 8)

    def product(query_position: int, key_position: int) -> torch.Tensor:
        pair = torch.stack([query, key])
        rotate_(pair, table[[query_position, key_position]])
        return pair[0] @ pair[1]

    assert torch.allclose(product(9, 4), product(50, 45), atol=1e-5)
    assert not torch.allclose(product(9, 4), product(9, 5), atol=1e-3)
