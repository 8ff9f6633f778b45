"""Which answers are decoded again, and what is written into their records."""

from collections.abc import Sequence
from typing import cast

import pytest

from repro.run.judge.clean_decode import Clean, CleanDecoder
from repro.run.judge.compare import compare, to_decode
from repro.run.limits import LimitWatch
from repro.serve.types import GenerateRequest
from tests.builders import make_request


class Oracle:
    """Says that every answer is 1, 2, 3."""

    asked = 0

    def check(self, request: GenerateRequest, answer: tuple[int, ...]) -> Clean:
        self.asked += 1
        place = next((n for n, (got, clean) in enumerate(zip(answer, (1, 2, 3), strict=False)) if got != clean), -1)
        return Clean((1, 2, 3), place, 4.5 if place >= 0 else 0.0)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def spelled(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def asked(count: int) -> dict[str, GenerateRequest]:
    return {f"s1-t{number}": GenerateRequest(f"s1-t{number}", (7,)) for number in range(count)}


def records(*answers: list[int]) -> list:
    return [make_request(f"s1-t{n}", turn=n, tokens=answer, oracle="") for n, answer in enumerate(answers)]


def run(found: list, limits: LimitWatch | None = None, **more: object) -> tuple[list, Oracle]:
    oracle = Oracle()
    watch = limits or LimitWatch(1e9, 10**9, lambda: 0.0)
    compared = compare(found, asked(len(found)), cast(CleanDecoder, oracle), spelled, watch, **more)  # type: ignore[arg-type]
    return compared, oracle


def test_all_suspects_and_a_seeded_sample_of_the_rest_are_decoded() -> None:
    rest = [make_request(f"s{n}-t1", turn=n) for n in range(20)]
    suspects = [
        make_request("a-t1", raced=True),
        make_request("b-t1", detectors=["garbled"]),
        make_request("c-t1", corrupted=True),
    ]
    silent = make_request("z-t1", tokens=[])
    chosen = to_decode([*rest, *suspects, silent], sample=4, seed=1)
    assert len(chosen) == 7 and all(suspect in chosen for suspect in suspects) and silent not in chosen
    assert chosen == to_decode([*rest, *suspects, silent], sample=4, seed=1)
    assert chosen != to_decode([*rest, *suspects, silent], sample=4, seed=2)
    assert [record.session for record in chosen] == sorted(record.session for record in chosen)


def test_a_record_says_where_its_answer_left_the_clean_one() -> None:
    found = records([1, 2, 3], [1, 9, 3])
    compared, _ = run(found)
    assert [(each.request, each.first_difference, each.logit_gap) for each in compared] == [
        ("s1-t0", -1, 0.0),
        ("s1-t1", 1, 4.5),
    ]
    same, different = found
    assert (same.oracle, same.first_difference, same.clean_text) == ("same", -1, "1 2 3")
    assert (different.oracle, different.first_difference, different.logit_gap) == ("diverged", 1, 4.5)
    assert different.clean_tokens == [1, 2, 3] and compared[1].got == different.text


def test_ctrl_c_ends_the_decoding_and_what_was_decoded_counts() -> None:
    def stop(number: int, total: int) -> None:
        assert total == 3
        if number == 2:
            raise KeyboardInterrupt

    limits = LimitWatch(1e9, 10**9, lambda: 0.0)
    found = records([1], [2], [3])
    compared, _ = run(found, limits, done=stop)
    assert len(compared) == 2 and found[1].oracle == "diverged" and found[2].oracle == ""
    assert limits.cut.why == "Ctrl-C ended the run early"


@pytest.mark.parametrize("allowed", [0, 1])
def test_the_wall_clock_ends_the_decoding_too(allowed: int) -> None:
    clock = Clock()
    limits = LimitWatch(10.0, 10**9, clock)

    def tick(number: int, total: int) -> None:
        clock.now_s = 10.0

    clock.now_s = 10.0 * (1 - allowed)
    compared, oracle = run(records([1], [2], [3]), limits, done=tick)
    assert len(compared) == oracle.asked == allowed and "wall_s" in limits.cut.why
