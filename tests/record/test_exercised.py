"""When an index read counts as overlapping a load: while copy and read run at the same time, whoever ends first."""

import pytest

from repro.base.probe import Access
from repro.record.exercised import ExerciseMeter
from tests.builders import make_op

READ = (Access(False, "device", "index", 0, 1, "s1-t1"),)


def overlapping(*ops: tuple[str, float, float]) -> int:
    """Return the overlaps counted of operations (copy or index, start, end), in the order in which they ended."""
    meter = ExerciseMeter()
    names = {"copy": "loadback.copy_layer", "index": "forward.index"}
    for kind, start_us, end_us in ops:
        accesses = READ if kind == "index" else ()
        meter.feed(make_op(name=names[kind], start_us=start_us, end_us=end_us, accesses=accesses))
    return meter.counts.reads_overlapping_load


@pytest.mark.parametrize(
    "ops",
    [
        [("copy", 0, 10), ("index", 5, 15)],
        [("index", 0, 10), ("copy", 5, 15)],
        [("copy", 0, 10), ("copy", 10, 11), ("index", 5, 15)],
        [("copy", 0, 10), ("index", 2, 10)],
    ],
)
def test_a_read_while_a_copy_runs_counts_once(ops):
    assert overlapping(*ops) == 1


def test_a_read_that_a_later_copy_overlaps_too_counts_once():
    assert overlapping(("copy", 0, 10), ("index", 5, 15), ("copy", 11, 20)) == 1
    assert overlapping(("index", 0, 10), ("copy", 5, 15), ("copy", 6, 20)) == 1


def test_each_read_under_one_copy_counts():
    assert overlapping(("index", 0, 4), ("index", 4, 8), ("copy", 2, 15), ("index", 10, 20)) == 3


def test_one_after_the_other_is_no_overlap():
    assert overlapping(("copy", 0, 10), ("index", 10, 15)) == 0
    assert overlapping(("index", 0, 10), ("copy", 10, 15), ("index", 15, 16)) == 0
