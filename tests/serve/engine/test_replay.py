"""A schedule is a list of choices: the same list, the same run, event for event."""

import asyncio

import pytest

from repro.fault.kinds import Evict, Reorder
from repro.fault.plan import Fault, When
from repro.schedule.pickers import Pick, RandomPicker, timed
from repro.serve.guards import Guards
from tests.serve.engine.builders import PAGE, Stack, delay, make_config, make_request, never, prompt, same_events
from tests.tapes import Recording, TapePicker

FAULTS = (
    delay("loadback.copy_layer", 20_000, probability=0.3),
    Fault("forward.attend", Reorder(), When(probability=0.1)),
    Fault("memory.evict", Evict(6 * PAGE), When(probability=0.5)),
)
DEFECTIVE = Guards().replaced(before_index_read=never)


async def busy(stack: Stack) -> None:
    """Ask, come back, abort: five clients that share prefixes."""

    async def client(number: int) -> None:
        await asyncio.sleep(0.01 * number)
        for turn in range(3):
            tokens = prompt(number % 2, 9 + 5 * turn + number)
            asked = asyncio.create_task(stack.ask(make_request(f"c{number}-{turn}", tokens, 3)))
            if number == 3:
                await asyncio.sleep(0.05)
                stack.engine.abort(f"c{number}-{turn}")
            await asked

    await asyncio.gather(*(client(number) for number in range(5)))


def run_busy(pick: Pick) -> Stack:
    return Stack(make_config(), guards=DEFECTIVE, faults=FAULTS, pick=pick, seed=3).run(busy)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_recorded_random_run_replays_event_for_event(seed: int) -> None:
    recording = Recording(RandomPicker(seed))
    first = run_busy(recording)
    assert any(recording.tape), "the picker never deviated"
    assert first.engine.stats().load_back_tokens_total > 0
    again = run_busy(TapePicker(recording.tape))
    assert same_events(first.events, again.events)
    assert first.signatures == again.signatures and first.bad_reads == again.bad_reads


def test_the_same_picker_twice_gives_the_same_run_and_another_seed_another() -> None:
    one, same, other = (run_busy(RandomPicker(seed)) for seed in (1, 1, 2))
    assert same_events(one.events, same.events)
    assert not same_events(one.events, other.events)


def test_an_empty_tape_is_the_natural_schedule() -> None:
    assert same_events(run_busy(TapePicker([])).events, run_busy(timed).events)


def test_a_tape_that_ends_goes_on_naturally_and_changes_nothing_before_its_end() -> None:
    recording = Recording(RandomPicker(1))
    whole = run_busy(recording)
    cut = run_busy(TapePicker(recording.tape[:200]))
    shared = next(n for n, (a, b) in enumerate(zip(whole.events, cut.events, strict=False)) if a != b)
    assert shared > 100
