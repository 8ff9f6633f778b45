"""Page sets by number, and grids that grow."""

import pytest

from detectors.pages.sets import Grid, PageSetTable, Sample
from repro.base.probe import PAGE_SETS_VALID, PageSet


@pytest.mark.parametrize(
    ("ranges", "pages"),
    [((), []), ((3, 6), [3, 4, 5]), ((3, 5, 9, 10), [3, 4, 9]), ((0, 1, 2, 3, 4, 7), [0, 2, 4, 5, 6])],
)
def test_ranges_are_half_open(ranges: tuple[int, ...], pages: list[int]) -> None:
    table = PageSetTable()
    table.feed(PageSet(1, ranges))
    assert table[1].tolist() == pages
    assert table.union((1,)).stop == (max(pages) + 1 if pages else 0)


def test_a_union_holds_the_pages_of_all_sets() -> None:
    table = PageSetTable()
    table.feed(PageSet(1, (8, 10)))
    table.feed(PageSet(2, (0, 2)))
    union = table.union((1, 2))
    assert union.pages.tolist() == [8, 9, 0, 1]
    assert union.stop == 10


def test_a_sample_has_one_page_of_each_run_of_neighbours() -> None:
    table = PageSetTable(Sample(16, 35))
    table.feed(PageSet(1, (0, 64)))
    table.feed(PageSet(2, (4, 19)))
    assert table.union((1,)).pages.tolist() == [3, 19, 35, 51]
    assert table.union((1,)).stop == 52
    assert table.union((2,)).pages.tolist() == []


def test_sets_are_valid_as_long_as_promised_and_forgotten_then() -> None:
    table = PageSetTable()
    for number in range(1, PAGE_SETS_VALID + 1):
        table.feed(PageSet(number, (number, number + 1)))
    assert table[1].tolist() == [1]
    table.feed(PageSet(PAGE_SETS_VALID + 1, (7, 8)))
    assert len(table) == PAGE_SETS_VALID
    with pytest.raises(KeyError):
        table[1]


def test_a_grid_grows_and_keeps_what_it_holds() -> None:
    grid = Grid(-1)
    grid.row(0, 10)[9] = 5
    assert grid.row(3, 1000)[999] == -1
    assert grid.row(0, 10)[9] == 5
    assert grid.row(0, 1)[200] == -1
