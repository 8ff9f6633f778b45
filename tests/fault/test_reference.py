"""The scenario reference names every point and kind, in the words of the table of points."""

from tests.fault.reference import BLOCK, PAGE, reference


def test_reference_in_the_page_is_the_table_of_points() -> None:
    shown = {block[1]: block[0] for block in BLOCK.finditer(PAGE.read_text())}
    assert shown == {name: reference(name) for name in ("legal", "wrong")}, "run python -m tests.fault.reference"
