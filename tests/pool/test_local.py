"""Calls in processes of their own: results, what is raised, what dies, and what Ctrl-C leaves."""

import os
import signal
import threading

import pytest

from repro.base.errors import HarnessError, RecordError
from repro.pool.call import Died
from repro.pool.local import LocalPool
from tests.pool.functions import break_down, double, fill_the_disk, kill_itself, sleep


def test_each_argument_comes_back_with_its_result_whatever_the_call_prints() -> None:
    with LocalPool(2) as pool:
        results = dict(pool.results(double, iter([1.0, 2.5, 4.0])))
    assert {number: made.value for number, made in results.items() if not isinstance(made, Died)} == {
        1.0: 2.0,
        2.5: 5.0,
        4.0: 8.0,
    }


def test_a_process_ends_after_its_number_of_calls() -> None:
    with LocalPool(1, calls_each=2) as pool:
        made = [result for _, result in pool.results(double, iter([1.0, 2.0, 3.0]))]
    first, second, third = (0 if isinstance(each, Died) else each.process for each in made)
    assert first == second != third


def test_an_argument_is_drawn_only_when_a_worker_is_free_and_the_last_result_was_taken() -> None:
    drawn: list[float] = []

    def numbers():  # type: ignore[no-untyped-def]
        for number in (1.0, 2.0, 3.0):
            drawn.append(number)
            yield number

    with LocalPool(1) as pool:
        for taken, _ in enumerate(pool.results(double, numbers()), 1):
            assert len(drawn) == taken


def test_a_process_that_is_killed_is_one_result_and_the_next_call_gets_another_process() -> None:
    with LocalPool(1) as pool:
        first, second = (result for _, result in pool.results(kill_itself, iter([1, 0])))
    assert isinstance(first, Died) and "SIGKILL" in first.why and second == 0


def test_a_call_that_takes_too_long_dies() -> None:
    with LocalPool(1, timeout_s=0.5) as pool:
        ((_, result),) = pool.results(sleep, iter([600.0]))
    assert result == Died("no answer within 0.5 s")


def test_what_a_call_raises_for_the_user_is_raised_here_with_its_run_folder() -> None:
    with LocalPool(1) as pool, pytest.raises(RecordError, match="3: No space left") as caught:
        list(pool.results(fill_the_disk, iter([3])))
    assert caught.value.run_dir == "runs/full"


def test_a_bug_is_raised_here_with_its_traceback() -> None:
    with LocalPool(1) as pool, pytest.raises(HarnessError, match=r"ZeroDivisionError: 7 by nothing[\s\S]*break_down"):
        list(pool.results(break_down, iter([7])))


def test_after_a_ctrl_c_what_is_under_way_can_still_be_taken() -> None:
    pressed = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    with LocalPool(1) as pool:
        pressed.start()
        with pytest.raises(KeyboardInterrupt):
            list(pool.results(sleep, iter([3.0, 3.0])))
        assert list(pool.results(sleep, iter([]))) == [(3.0, "slept")]


def test_calls_under_way_can_be_told_of_a_ctrl_c() -> None:
    with LocalPool(1) as pool:
        pressed = threading.Timer(3.0, pool.interrupt, (5.0,))
        pressed.start()
        assert list(pool.results(sleep, iter([60.0]))) == [(60.0, "interrupted")]
