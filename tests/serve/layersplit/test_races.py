"""Each defect of the split is found, and the same load with the guard in place is silent."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

import tests.serve.engine.builders
from repro.base.probe import PageSet
from repro.fault.defects import DEFECTS
from repro.fault.plan import Fault
from repro.schedule.pickers import RandomPicker, timed
from repro.serve.device.streams import SimStream
from repro.serve.guards import Guards
from tests.serve.device.test_declared import WatchedDevice
from tests.serve.engine.builders import delay, make_request, prompt, same_events
from tests.serve.layersplit.builders import SplitStack, split_config


@dataclass(frozen=True)
class Case:
    """Faults under which a defect shows, and what finds it."""

    finds: tuple[str, ...]
    faults: tuple[Fault, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "layersplit_early_broadcast": Case(
        ("ordering", "canary"), (delay("loadback.copy_layer", 20_000, probability=0.5),)
    ),
    "layersplit_scratch_reuse": Case(
        ("ordering", "canary"), (delay("forward.index", 3_000, probability=0.2),), {"prefetch": True}
    ),
    "layersplit_silent_noop": Case(("canary",)),
    "layersplit_wrong_owner": Case(("canary",)),
    "layersplit_patch_in_flight": Case(
        ("ordering", "canary"), (delay("split.receive_latent", 3_000, probability=0.3),)
    ),
}


def served(case: Case, guards: Guards | None = None, **options: Any) -> SplitStack:
    """Serve two rounds of prompts that don't fit together, and come back."""
    stack = SplitStack(split_config(3, **case.settings), guards=guards, faults=case.faults, **options)

    async def main(stack: SplitStack) -> None:
        for turn in range(2):
            requests = [make_request(f"r{n}.{turn}", prompt(n, 12 + n + 3 * turn), answer=2) for n in range(7)]
            await asyncio.gather(*(stack.ask(request) for request in requests))

    return stack.run(main)


@pytest.mark.parametrize("name", CASES)
def test_the_defect_is_found_and_the_guard_is_silent(name: str) -> None:
    case = CASES[name]
    found = findings(served(case, DEFECTS[name].apply(Guards())))
    for detector in case.finds:
        assert found[detector], f"{detector} found nothing"
    guarded = served(case)
    guarded.assert_clean()
    assert all(counts.fired for counts in guarded.injector.counts.values())


def test_the_correct_ranks_are_silent_under_another_schedule() -> None:
    served(CASES["layersplit_early_broadcast"], pick=RandomPicker(3)).assert_clean()


def test_a_run_is_the_same_every_time_bit_for_bit() -> None:
    one, other = (served(CASES["layersplit_early_broadcast"], seed=5) for _ in range(2))
    assert same_events(one.events, other.events)


@pytest.mark.parametrize("name", ["layersplit_early_broadcast", "layersplit_scratch_reuse"])
def test_ordering_needs_no_fault_and_no_luck(name: str) -> None:
    case = Case((), (), CASES[name].settings)
    assert findings(served(case, DEFECTS[name].apply(Guards())))["ordering"]


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("this rank's new rows are computed", "new rows are sent before any were computed"),
        ("this rank's tokens are chosen", "tokens are sent before any were chosen"),
    ],
)
def test_what_is_gathered_before_it_is_there_is_noticed(why: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = SimStream.wait
    monkeypatch.setattr(SimStream, "wait", lambda self, event, each: None if each == why else wait(self, event, each))
    with pytest.raises(AssertionError, match=told):
        served(Case(()))


def test_two_buffers_and_one_stream_of_collectives_need_no_guard_of_the_scratch() -> None:
    """The gather of the layer between comes before the broadcast, and behind the buffer's last reader."""
    case = Case((), CASES["layersplit_scratch_reuse"].faults, {"scratch": 2, "prefetch": True})
    served(case, DEFECTS["layersplit_scratch_reuse"].apply(Guards())).assert_clean()


@pytest.mark.parametrize("picker", ["timed", "random"])
def test_no_operation_of_a_rank_touches_a_page_that_it_has_not_declared(
    picker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tests.serve.engine.builders, "SimDevice", WatchedDevice)
    monkeypatch.setattr(WatchedDevice, "touched", [])
    stack = served(CASES["layersplit_early_broadcast"], pick=RandomPicker(5) if picker == "random" else timed)
    sets = {event.id: pages_of(event) for event in stack.events if isinstance(event, PageSet)}
    assert {access.tier.split(".")[1] for _, access, _ in WatchedDevice.touched} == {"device", "host", "scratch"}
    for name, access, declared in WatchedDevice.touched:
        place = (access.write, access.tier, access.component, access.layer)
        of_place = [each for each in declared if (each.write, each.tier, each.component, each.layer) == place]
        assert any(sets[access.pages] <= sets[each.pages] for each in of_place), f"{name}: {access} of {declared}"


def pages_of(pages: PageSet) -> frozenset[int]:
    ranges = zip(pages.ranges[::2], pages.ranges[1::2], strict=True)
    return frozenset(page for start, stop in ranges for page in range(start, stop))


def findings(stack: SplitStack) -> dict[str, int]:
    """Return how much each detector found."""
    verdicts = [detector.verdict() for detector in (stack.ordering, stack.ownership, stack.canary)]
    return {verdict.detector: len(verdict.findings) for verdict in verdicts}
