"""What each kind makes of a page, with tensors and without."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repro.fault.damage import QUIET_NAN, damaged, same
from repro.serve.kv.pool import Rows
from tests.fault.builders import CORRUPTING

TOKENS, WIDTH = 8, 4


def page(number: int, tensors: bool) -> Rows:
    """Return a page of rows that no other number has."""
    stamps = np.arange(1, TOKENS + 1, dtype=np.uint64)[None] + np.uint64(1000 * number)
    values = torch.from_numpy(stamps.astype(np.float32)).unsqueeze(-1).repeat(1, 1, WIDTH) if tensors else None
    return Rows(values, stamps, np.zeros((1, TOKENS), np.int32))


def damage(kind: str, seed: int, tensors: bool, written: list[bool]) -> tuple[Rows, ...]:
    draw = np.random.Generator(np.random.Philox(seed))
    pages = (page(number, tensors) for number in range(3))
    return damaged(kind, *pages, np.array(written), draw)


some_rows = st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS).filter(any)


@given(st.sampled_from(CORRUPTING), st.integers(0, 99), st.booleans(), some_rows)
def test_a_row_that_was_written_is_never_what_it_was(kind: str, seed: int, tensors: bool, written: list[bool]) -> None:
    held, *_ = damage(kind, seed, tensors, written)
    assert (~same(held, page(0, tensors))[0] & written).any()


@given(st.integers(0, 99), st.booleans(), some_rows)
def test_a_flip_is_one_bit_of_one_written_row(seed: int, tensors: bool, written: list[bool]) -> None:
    [held] = damage("flip", seed, tensors, written)
    before = page(0, tensors)
    [row] = np.flatnonzero(~same(held, before)[0])
    assert written[row]
    bits = int(held.stamps[0, row] ^ before.stamps[0, row]).bit_count()
    if held.values is not None and before.values is not None:
        words = [rows.values.view(torch.int32).numpy().view(np.uint32)[0, row] for rows in (held, before)]  # type: ignore[union-attr]
        bits += sum(int(word).bit_count() for word in words[0] ^ words[1])
    assert bits == 1


@pytest.mark.parametrize("tensors", [False, True])
def test_zero_and_nan_fill_the_page(tensors: bool) -> None:
    [zeroed], [nan] = (damage(kind, 0, tensors, [True] * TOKENS) for kind in ("zero", "nan"))
    assert not zeroed.stamps.any() and (nan.stamps == QUIET_NAN).all()
    if tensors:
        assert zeroed.values is not None and not zeroed.values.any()
        assert nan.values is not None and nan.values.isnan().all()


@given(st.integers(0, 99), st.booleans(), some_rows)
def test_a_torn_write_is_right_up_to_a_row_and_stale_behind_it(seed: int, tensors: bool, written: list[bool]) -> None:
    [held] = damage("partial", seed, tensors, written)
    right, stale = same(held, page(0, tensors))[0], same(held, page(1, tensors))[0]
    cut = int(right.sum())
    assert right.tolist() == [True] * cut + [False] * (TOKENS - cut) and (right ^ stale).all()


@pytest.mark.parametrize("tensors", [False, True])
def test_swap_and_misdirect_take_another_page_too(tensors: bool) -> None:
    written = [True] * TOKENS
    mine, theirs = damage("swap", 0, tensors, written)
    assert same(mine, page(2, tensors)).all() and same(theirs, page(0, tensors)).all()
    mine, theirs = damage("misdirect", 0, tensors, written)
    assert same(mine, page(1, tensors)).all() and same(theirs, page(0, tensors)).all()


def test_what_is_no_corruption_is_refused() -> None:
    with pytest.raises(AssertionError, match="delay corrupts nothing"):
        damage("delay", 0, False, [True] * TOKENS)
