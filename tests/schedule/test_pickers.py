"""Who goes next is a function of seed and step, and a tape gives it again."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from repro.base.probe import Access
from repro.schedule.pickers import RandomPicker, timed
from tests.tapes import Recording, TapePicker


@dataclass(frozen=True)
class Choice:
    time_us: float
    stream: int = 0
    kind: str = "timer"
    name: str = "host"
    declared: tuple[Access, ...] = ()
    noticed: bool = True


counts = st.lists(st.integers(1, 9), min_size=1, max_size=60)  # how many may go, step by step


def choices(count: int) -> list[Choice]:
    return [Choice(float(number)) for number in range(count)]


def test_timed_takes_what_comes_first() -> None:
    assert [timed(choices(count)) for count in (1, 5, 9)] == [0, 0, 0]


@given(st.integers(0, 2**63 - 1), counts)
def test_random_is_a_function_of_the_seed_and_always_possible(seed: int, steps: list[int]) -> None:
    one, other = RandomPicker(seed), RandomPicker(seed)
    picked = [one(choices(count)) for count in steps]
    assert picked == [other(choices(count)) for count in steps]
    assert all(0 <= pick < count for pick, count in zip(picked, steps, strict=True))


def test_random_picks_everything_about_equally_often() -> None:
    picker = RandomPicker(3)
    picked = [picker(choices(4)) for _ in range(4000)]
    assert all(900 < picked.count(number) < 1100 for number in range(4))


@given(st.integers(0, 2**32), counts)
def test_a_tape_gives_the_same_choices_again(seed: int, steps: list[int]) -> None:
    recording = Recording(RandomPicker(seed))
    picked = [recording(choices(count)) for count in steps]
    tape = TapePicker(recording.tape)
    assert [tape(choices(count)) for count in steps] == picked


def test_a_tape_that_ends_or_asks_too_much_goes_on_naturally() -> None:
    tape = TapePicker([1, 7])
    assert [tape(choices(3)) for _ in range(3)] == [1, 2, 0]
