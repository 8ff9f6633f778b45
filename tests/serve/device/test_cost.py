"""Prices: the figures that public sources give, and the directions that any price must have."""

import pytest

from repro.serve.device.cost import PRESETS, CostModel

REAL = CostModel("unscaled", scale=1.0)


def test_seventy_thousand_latents_of_a_layer_take_one_and_six_tenths_milliseconds() -> None:
    copy_us = REAL.copy_us(70_000, REAL.model.latent_row_bytes)
    assert copy_us == pytest.approx(1_600, rel=0.02)


def test_index_keys_are_about_an_eighth_of_the_latents() -> None:
    index_us = REAL.copy_us(70_000, REAL.model.index_row_bytes)
    latent_us = REAL.copy_us(70_000, REAL.model.latent_row_bytes)
    assert index_us / latent_us == pytest.approx(1 / 8, rel=0.1)


def test_a_scaled_token_is_priced_as_that_many_real_ones() -> None:
    scaled = CostModel("scaled", scale=16.0)
    assert scaled.copy_us(100, 1152) == REAL.copy_us(1600, 1152)
    assert scaled.store_us(100, prefill=True) == REAL.store_us(1600, prefill=True)
    assert scaled.attend_us(100, prefill=True) == REAL.attend_us(1600, prefill=True)


def test_a_decode_token_is_one_token_whatever_the_scale() -> None:
    scaled = CostModel("scaled", scale=16.0)
    assert scaled.store_us(8, prefill=False) == REAL.store_us(8, prefill=False)
    assert scaled.feed_forward_us(8, prefill=False) == REAL.feed_forward_us(8, prefill=False)
    assert scaled.index_us(1000, prefill=False) == REAL.index_us(16_000, prefill=False)  # its keys are scaled


@pytest.mark.parametrize("prefill", [True, False])
def test_more_work_never_costs_less(prefill: bool) -> None:
    for price in (REAL.store_us, REAL.attend_us, REAL.feed_forward_us):
        costs = [price(tokens, prefill) for tokens in (1, 8, 64, 512, 4096)]
        assert costs == sorted(costs)
        assert costs[0] >= REAL.kernel_fixed_us


def test_one_gpu_is_slower_than_eight() -> None:
    one, eight = PRESETS["h100-glm5"], PRESETS["h100x8-glm5"]
    assert one.store_us(512, prefill=True) > 4 * eight.store_us(512, prefill=True)


def test_the_tail_prices_the_layers_that_a_small_model_lacks() -> None:
    work = {"rows": 8, "tokens": 8, "token_keys": 24_000.0, "prefill": False}
    whole = REAL.tail_us(**work, layers=REAL.model.layers)  # type: ignore[arg-type]
    lacking = REAL.tail_us(**work, layers=6)  # type: ignore[arg-type]
    layer_us = REAL.store_us(8, False) + REAL.index_us(24_000.0, False)
    layer_us += REAL.attend_us(8, False) + REAL.feed_forward_us(8, False)
    assert lacking - whole == pytest.approx((REAL.model.layers - 6) * layer_us)
    assert REAL.tail_us(**work, layers=100) == whole  # type: ignore[arg-type]
