"""Orders of accesses to a page: what counts as one, and what makes it a new one."""

import pytest

from repro.base.probe import Access, PageSet
from repro.search.orders import Orders
from tests.builders import make_op

WRITE = Access(True, "device", "index", 2, 1, "")
READ = Access(False, "device", "index", 2, 1, "r")


def seen(*ops: object) -> set[str]:
    orders = Orders()
    orders.feed(PageSet(1, (4, 8)))
    orders.feed(PageSet(2, (20, 30)))
    for op in ops:
        orders.feed(op)  # type: ignore[arg-type]
    return orders.seen


def copy(**changes: object) -> object:
    fields = {"name": "copy", "accesses": (WRITE,), "enqueued_us": 0.0, "start_us": 10.0, "end_us": 20.0}
    return make_op("load", **(fields | changes))


def score(**changes: object) -> object:
    fields = {"name": "score", "accesses": (READ,), "enqueued_us": 1.0, "start_us": 30.0, "end_us": 40.0}
    return make_op("compute", **(fields | changes))


def test_a_read_after_another_stream_s_write_is_an_order() -> None:
    assert seen(copy(), score()) == {"compute score after load copy: device index 2"}


@pytest.mark.parametrize(
    ("changes", "how"),
    [({"start_us": 15.0}, "beside"), ({"enqueued_us": -1.0}, "inverted after")],
)
def test_overlapping_and_overtaking_are_other_orders(changes: dict[str, float], how: str) -> None:
    assert seen(copy(), score(**changes)) == {f"compute score {how} load copy: device index 2"}


def test_operations_that_meet_are_told_the_rarest_first() -> None:
    orders = Orders()
    orders.feed(PageSet(1, (4, 8)))
    for op in (score(), score(), copy(), make_op("load", 9, name="alone")):
        orders.feed(op)  # type: ignore[arg-type]
    assert orders.operations == ("copy", "score")


def test_two_reads_one_stream_and_other_pages_are_no_order() -> None:
    reads = make_op("load", name="copy", accesses=(READ,))
    elsewhere = copy(accesses=(Access(True, "device", "index", 2, 2, ""),))
    assert (
        seen(reads, score()) == seen(copy(), make_op("load", 1, accesses=(READ,))) == seen(elsewhere, score()) == set()
    )


def test_workers_are_not_told_apart() -> None:
    one = seen(make_op("P0.transfer1", name="write", accesses=(WRITE,)), score())
    other = seen(make_op("P1.transfer0", name="write", accesses=(WRITE,)), score())
    assert one == other != set()
