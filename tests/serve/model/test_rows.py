"""Rows have the same bits for every number of rows beside them, threads, and width of the processor's registers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from repro.serve.model.glm5 import rotary_table
from repro.serve.model.kernels import head, rows
from repro.serve.model.panels import in_panels

HERE = Path(__file__).parent
DIGEST = "from tests.serve.model.test_rows import digest; print(digest())"


def product(x: np.ndarray, weight: torch.Tensor) -> np.ndarray:
    """Return `x` times a weight (outputs, inputs)."""
    panels = in_panels(weight)
    out = np.empty((len(x), panels.shape[0] * panels.shape[2]), np.float32)
    head.product(panels, x, out, 0, len(x))
    return out[:, : len(weight)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("inputs", "outputs"), [(256, 292), (128, 1024), (24, 8), (1, 33), (256, 4096)])
def test_product_rows_have_the_same_bits_in_any_number_of_rows(inputs, outputs):
    weight, x = random(outputs, inputs), random(40, inputs, seed=1)
    expected = product(x.numpy(), weight)
    assert np.allclose(expected, x.double() @ weight.double().t(), atol=1e-4)
    for count in (1, 2, 3, 4, 5, 6, 7, 11, 39):
        for first in (0, 40 - count):
            part = x[first : first + count].clone().numpy()
            assert np.array_equal(product(part, weight), expected[first : first + count])


def test_a_product_is_a_chain_of_fused_multiply_adds_from_the_first_input_on():
    weight, x = torch.tensor([[1.0, 2.0**-24, -1.0]]), np.array([[1.0, 1.0, 1.0]], np.float32)
    assert product(x, weight) == 0, "1 + 2 ** -24 is rounded to 1"
    assert product(x, weight.flip(1)) == 2.0**-24
    near_one = np.float32(1 + 2.0**-12)
    squared = product(np.array([[near_one, near_one]], np.float32), torch.tensor([[-1 - 2.0**-12, 1 + 2.0**-12]]))
    assert squared == np.float32(near_one.astype(float) ** 2 - np.float32(near_one * near_one)), "rounded once a step"


def digest() -> str:
    """Return the bits of what a random model of the bundled shape says, as hexadecimal digits."""
    from hashlib import sha256
    from tempfile import TemporaryDirectory

    from tests.serve.model.builders import BUNDLED, Cache, make_model, make_reference

    with TemporaryDirectory() as folder:
        model = make_model(make_reference(BUNDLED), Path(folder))
    logits = Cache(model, num_rows=1, max_tokens=300).prefill(0, torch.arange(300) * 37 % 4096, 128)
    return sha256(logits.contiguous().numpy().tobytes()).hexdigest()


def test_bits_are_the_same_on_a_processor_with_avx2_only():
    haswell = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-c", DIGEST]
    ran = subprocess.run(command, env=os.environ | haswell, capture_output=True, text=True, timeout=300)
    assert ran.stdout.strip() == digest(), ran.stderr


def test_rotation_keeps_products_a_function_of_the_distance():
    table = rotary_table(8, 1e4, 64)
    query, key = np.linspace(-1, 1, 8, dtype=np.float32), np.linspace(1, 2, 8, dtype=np.float32)

    def rotated_product(query_position: int, key_position: int) -> float:
        pair = np.stack([query, key])
        for vector, position in zip(pair, (query_position, key_position), strict=True):
            rows.rotate(vector, table[position], vector)
        return float(pair[0] @ pair[1])

    assert rotated_product(9, 4) == pytest.approx(rotated_product(50, 45), abs=1e-5)
    assert rotated_product(9, 4) != pytest.approx(rotated_product(9, 5), abs=1e-3)


def test_exponential_is_right_to_two_units_in_the_last_place():
    x = np.linspace(-87, 88, 20_001, dtype=np.float32)
    found = np.array([rows.exponential(each) for each in x], np.float64)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(found / exact - 1).max() <= 2 * np.finfo(np.float32).eps
    assert np.isnan(rows.exponential(np.float32(np.nan)))
    assert rows.exponential(np.float32(-np.inf)) < 1e-37
