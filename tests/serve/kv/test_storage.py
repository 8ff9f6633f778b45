"""The files of the storage tier: what comes back is what was written, or it is a miss."""

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.base.errors import UsageError
from repro.base.probe import Component
from repro.serve.kv.pool import COMPONENTS, KVPool, Rows
from repro.serve.kv.storage import Key, PageFiles, page_keys, root_key

LAYERS, PAGE = 3, 4
WIDTHS: dict[Component, int] = {"latent": 5, "index": 3}
ROOT = root_key("a test")
KEYS = page_keys(ROOT, np.arange(40), PAGE)


def make_files(folder: Path | None, *, stamps: bool = False, pages_max: int = 8) -> PageFiles:
    return PageFiles(folder, KVPool("host", LAYERS, 2, PAGE, None if stamps else WIDTHS), pages_max)


def made(component: Component, seed: int = 0, *, stamps: bool = False) -> Rows:
    """Return rows of any bits, NaN and its payloads among them."""
    draw = np.random.Generator(np.random.Philox(seed))
    shape = (LAYERS, PAGE)
    bits = draw.integers(0, 2**32, (*shape, WIDTHS[component]), np.uint32)
    return Rows(
        None if stamps else torch.from_numpy(bits.view(np.float32)),
        draw.integers(0, 2**64, shape, np.uint64),
        draw.integers(0, 2**31, shape, np.int32),
    )


def same(one: Rows | None, other: Rows) -> bool:
    assert one is not None
    if one.values is not None and other.values is not None:
        assert torch.equal(one.values.view(torch.int32), other.values.view(torch.int32))
    assert (one.values is None) == (other.values is None)
    return bool((one.stamps == other.stamps).all() and (one.taint == other.taint).all())


def stored(files: PageFiles, key: Key, seed: int = 0) -> None:
    for component in COMPONENTS:
        files.write(key, component, made(component, seed))
    files.admit(key)


def path_of(folder: Path, key: Key, component: Component = "index") -> Path:
    return folder / f"{key}.{component}"


# -- keys ---------------------------------------------------------------------------------------------------

tokens = st.lists(st.integers(-(2**60), 2**60), max_size=4 * PAGE)


@given(tokens, tokens, tokens)
def test_keys_are_equal_as_far_as_prefixes_are_and_never_beyond(
    shared: list[int], one: list[int], two: list[int]
) -> None:
    first, second = np.array(shared + one, np.int64), np.array(shared + two, np.int64)
    common = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    keys, others = page_keys(ROOT, first, PAGE), page_keys(ROOT, second, PAGE)
    assert (len(keys), len(others)) == (len(first) // PAGE, len(second) // PAGE)
    pages = common // PAGE
    assert keys[:pages] == others[:pages]
    assert not set(keys[pages:]) & set(others[pages:]), "what follows another page is another page"
    assert len(set(keys)) == len(keys), "equal pages at other places have other keys"


def test_pages_of_another_kind_have_other_keys() -> None:
    run = np.arange(3 * PAGE)
    assert not set(page_keys(ROOT, run, PAGE)) & set(page_keys(root_key("another"), run, PAGE))


# -- what comes back ----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), stamps=st.booleans())
@settings(deadline=None, max_examples=30)
def test_what_is_read_is_what_was_written_bit_for_bit(
    seed: int, stamps: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("storage")
    files = make_files(folder, stamps=stamps)
    for component in COMPONENTS:
        files.write(KEYS[0], component, made(component, seed, stamps=stamps))
    assert KEYS[0] not in files, "found before all of it was written"
    files.admit(KEYS[0])
    again = make_files(folder, stamps=stamps)
    assert KEYS[0] in again and KEYS[0] not in again.written
    for component in COMPONENTS:
        assert same(again.read(KEYS[0], component), made(component, seed, stamps=stamps))


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=40)
def test_a_bit_that_flipped_anywhere_in_a_file_makes_it_a_miss(
    place: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("storage")
    files = make_files(folder)
    stored(files, KEYS[0])
    content = bytearray(path_of(folder, KEYS[0]).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path_of(folder, KEYS[0]).write_bytes(content)
    assert files.read(KEYS[0], "index") is None
    assert files.read(KEYS[0], "latent") is not None


@pytest.mark.parametrize("kept", [0, 1, 20, 40, -1])
def test_a_file_that_was_cut_short_or_goes_on_is_a_miss(kept: int, tmp_path: Path) -> None:
    files = make_files(tmp_path)
    stored(files, KEYS[0])
    content = path_of(tmp_path, KEYS[0]).read_bytes()
    path_of(tmp_path, KEYS[0]).write_bytes(content[:kept])
    assert files.read(KEYS[0], "index") is None
    path_of(tmp_path, KEYS[0]).write_bytes(content + b"x")
    assert files.read(KEYS[0], "index") is None


def test_a_file_that_is_gone_or_under_another_ones_name_is_a_miss(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    stored(files, KEYS[0], 1)
    stored(files, KEYS[1], 2)
    shutil.copy(path_of(tmp_path, KEYS[0]), path_of(tmp_path, KEYS[1]))
    path_of(tmp_path, KEYS[0]).unlink()
    assert files.read(KEYS[0], "index") is files.read(KEYS[1], "index") is None


def test_a_file_of_stamps_is_a_miss_where_tensors_are_moved(tmp_path: Path) -> None:
    files = make_files(tmp_path, stamps=True)
    files.write(KEYS[0], "index", made("index", stamps=True))
    assert make_files(tmp_path).read(KEYS[0], "index") is None


# -- which pages there are ------------------------------------------------------------------------------------


def test_beyond_the_limit_the_page_used_longest_ago_goes_with_its_files_and_the_first_of_a_prefix_last(
    tmp_path: Path,
) -> None:
    files = make_files(tmp_path, pages_max=3)
    for key in KEYS[:3]:
        stored(files, key)
    assert files.leading([KEYS[0], KEYS[1], KEYS[9]]) == 2
    stored(files, KEYS[3])
    assert KEYS[2] not in files and not path_of(tmp_path, KEYS[2]).exists()
    stored(files, KEYS[4])
    assert KEYS[1] not in files and KEYS[0] in files and len(files) == 3
    assert len(os.listdir(tmp_path)) == 3 * len(COMPONENTS)


def test_a_prefix_is_found_up_to_its_first_page_that_is_not_there(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    for place in (0, 1, 3):
        stored(files, KEYS[place])
    assert (files.leading(KEYS), files.leading(KEYS[3:]), files.leading(KEYS[2:])) == (2, 1, 0)


def test_a_temporary_folder_is_there_from_the_first_write_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = make_files(None)
    assert os.listdir(tmp_path) == []
    stored(files, KEYS[0])
    assert len(os.listdir(tmp_path)) == 1
    files.close()
    assert os.listdir(tmp_path) == []
    assert files.read(KEYS[0], "index") is None
    with pytest.raises(OSError, match="closed"):
        files.write(KEYS[1], "index", made("index"))
    assert os.listdir(tmp_path) == []


def test_a_temporary_folder_goes_with_an_engine_that_was_never_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = make_files(None)
    stored(files, KEYS[0])
    del files
    gc.collect()
    assert os.listdir(tmp_path) == []


def test_a_named_folder_is_made_and_stays_and_only_whole_pages_in_it_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "where"
    files = make_files(folder)
    stored(files, KEYS[0])
    files.write(KEYS[1], "latent", made("latent"))
    files.close()
    (folder / "notes.txt").write_text("mine")
    again = make_files(folder)
    assert (KEYS[0] in again, KEYS[1] in again, len(again)) == (True, False, 1)
    again.clear()
    assert sorted(os.listdir(folder)) == [path_of(folder, KEYS[1], "latent").name, "notes.txt"]


def test_a_folder_that_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r'storage_folder = ".*file": can\'t be used \(.*\); name a folder'):
        make_files(tmp_path / "file")


def test_a_disk_that_is_full_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_files(tmp_path)

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        files.write(KEYS[0], "index", made("index"))
    assert os.listdir(tmp_path) == []
