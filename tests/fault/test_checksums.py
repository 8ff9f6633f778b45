"""Bits that flip in the values of a row: a stamp alone does not see them, one mixed with a checksum does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro.scenario.schema import Scenario
from repro.serve.kv.pool import KVPool
from repro.serve.kv.stamps import checksum
from tests.fault.builders import corruptions_of, some
from tests.small import run_small, small_scenario

WIDTH = 6
SLOTS = np.arange(8, dtype=np.int64)


def tiny(checksums: bool) -> Scenario:
    """Return a correct stack with tensors and four requests."""
    plain = small_scenario("tensors")
    load = replace(plain.load, sessions=2, turns=2, prompt_tokens=400, answer_tokens_max=16)
    config = replace(plain.config, checksums=checksums, context_tokens=1024)
    return replace(plain, defects=(), faults=(), exercise={}, config=config, load=load)


def pool_of(*, checksums: bool) -> KVPool:
    """Return a pool of two pages of four rows, all written."""
    pool = KVPool("device", 1, 2, 4, {"latent": WIDTH, "index": WIDTH}, checksums=checksums)
    values = torch.arange(8 * WIDTH, dtype=torch.float32).reshape(8, WIDTH)
    pool.write_slots("latent", 0, SLOTS, values, SLOTS.astype(np.uint64), np.zeros(8, np.int32))
    return pool


@given(st.integers(0, 7), st.integers(0, WIDTH - 1), st.integers(0, 31))
def test_any_bit_of_a_row_is_seen_with_checksums_and_only_there(row: int, column: int, bit: int) -> None:
    for checksums in (True, False):
        pool = pool_of(checksums=checksums)
        pool.flat("latent", 0).view(torch.int32)[row, column] ^= int(np.uint32(1 << bit).view(np.int32))
        stamps = pool.stamps_at("latent", 0, np.array([0, 1]), np.ones((2, 4), bool)).reshape(-1)
        assert np.flatnonzero(stamps != SLOTS.astype(np.uint64)).tolist() == ([row] if checksums else [])


def test_rows_that_are_not_read_are_not_summed() -> None:
    pool, read = pool_of(checksums=True), np.zeros((1, 4), bool)
    read[0, 2] = True
    stamps = pool.stamps_at("latent", 0, np.array([1]), read)
    assert stamps[0, 2] == 6 and (stamps[0, [0, 1, 3]] != [4, 5, 7]).all()


def test_a_checksum_is_of_the_bits_not_of_the_numbers() -> None:
    zeros = torch.tensor([[0.0, 0.0], [-0.0, 0.0], [0.0, -0.0]])
    assert len(set(checksum(zeros).tolist())) == 3


@pytest.mark.parametrize("checksums", [True, False])
def test_flips_under_tensors_are_noticed_where_checksums_are_kept(checksums: bool, tmp_path: Path) -> None:
    flips = (some("memory.in_use", "flip", probability=1.0),)
    outcome = run_small(tmp_path, replace(tiny(checksums), faults=flips), oracle_sample=0)
    each = corruptions_of(outcome)["memory.in_use.flip"]
    assert each.read > 10
    assert each.detected > 0.5 * each.read if checksums else each.detected < 0.2 * each.read


def test_checksums_change_nothing_else(tmp_path: Path) -> None:
    without, summed = (run_small(tmp_path, tiny(checksums), oracle_sample=0) for checksums in (False, True))
    assert without.fingerprint == summed.fingerprint and summed.findings == ()
