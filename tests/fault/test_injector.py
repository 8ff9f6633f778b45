"""The injector: draws that nothing else shifts, exact counts, and what is told of a firing."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from repro.base.clock import run_virtual
from repro.base.probe import Decision, Event, FaultEvent
from repro.fault import injector as injector_module
from repro.fault.injector import Injector
from repro.fault.kinds import Abort, Delay, Evict, Reorder, Slow, Stall
from repro.fault.plan import Fault, When
from tests.idle import IdleWorld

POINT = "loadback.copy_layer"


def delay(probability: float = 1.0, us: float = 800, at: str = POINT, skip: int = 0, times: int | None = None) -> Fault:
    return Fault(at, Delay(us), When(probability, skip, times))


def injector_of(*faults: Fault, seed: int = 7, sinks: tuple[injector_module.Sink, ...] = ()) -> Injector:
    return Injector(faults, seed, sinks, now_us=lambda: 125.0)


def firings(injector: Injector, fault: Fault, hits: int = 200, actor: str = "load") -> list[bool]:
    """Return which of the next hits of the fault's point it fires at."""
    fired = []
    for _ in range(hits):
        before = injector.counts[fault.name].fired
        injector.hit(fault.at, actor)
        fired.append(injector.counts[fault.name].fired > before)
    return fired


def test_a_point_without_a_fault_asks_for_nothing() -> None:
    injector = injector_of(delay())
    assert injector.hit("forward.index", "compute") is None
    assert injector.counts[delay().name].reached == 0


def test_a_fault_of_probability_one_fires_at_every_hit() -> None:
    injector = injector_of(delay())
    assert injector.hit(POINT, "load") == Decision(delay_us=800, fault=f"{POINT}.delay", kind="delay")
    assert all(firings(injector, delay()))


def test_probability_is_kept() -> None:
    fired = firings(injector_of(delay(0.2)), delay(0.2), hits=5000)
    assert 0.18 < sum(fired) / 5000 < 0.22


def test_skip_leaves_the_first_hits_of_each_actor_alone() -> None:
    injector = injector_of(delay(skip=3))
    assert firings(injector, delay(), hits=5, actor="a") == [False] * 3 + [True] * 2
    assert firings(injector, delay(), hits=5, actor="b") == [False] * 3 + [True] * 2


def test_times_bounds_the_firings_of_all_actors_together() -> None:
    injector = injector_of(delay(times=3))
    assert sum(firings(injector, delay(), hits=2, actor="a")) == 2
    assert sum(firings(injector, delay(), hits=10, actor="b")) == 1


def test_counts_say_armed_reached_and_fired() -> None:
    injector = injector_of(delay(times=2), delay(us=5, times=1), delay(at="forward.index"))
    firings(injector, delay(), hits=4)
    counts = injector.counts[f"{POINT}.delay"]
    assert (counts.armed, counts.reached, counts.fired) == (2, 8, 3)
    other = injector.counts["forward.index.delay"]
    assert (other.armed, other.reached, other.fired) == (1, 0, 0)


def test_the_same_seed_fires_at_the_same_hits_and_another_seed_does_not() -> None:
    fault = delay(0.3)
    one, same, other = (firings(injector_of(fault, seed=seed), fault) for seed in (1, 1, 2))
    assert one == same != other


OTHERS = [
    Fault("forward.index", Reorder()),
    Fault("client.abort", Abort(5), When(0.5)),
    Fault(POINT, Reorder(), When(0.5)),
    Fault(POINT, Stall(900), When(0.9, times=1)),
    Fault("memory.evict", Evict(64)),
]


@given(st.lists(st.sampled_from(OTHERS)), st.lists(st.sampled_from(OTHERS)))
def test_no_other_fault_changes_the_firings_of_this_one(before: list[Fault], after: list[Fault]) -> None:
    fault = delay(0.3)
    alone = firings(injector_of(fault), fault, hits=50)
    assert firings(injector_of(*before, fault, *after), fault, hits=50) == alone


def test_a_second_fault_of_the_same_name_leaves_the_firings_of_the_first_alone() -> None:
    first = delay(0.3, us=800)
    alone = firings(injector_of(first), first)
    both = injector_of(first, delay(0.3, us=1, times=2))
    together = []
    for _ in range(200):
        decision = both.hit(POINT, "load")
        together.append(decision is not None and decision.delay_us >= 800)
    assert together == alone


def test_a_busier_actor_does_not_shift_the_draws_of_another() -> None:
    fault = delay(0.3)
    quiet = firings(injector_of(fault), fault, actor="load")
    busy = injector_of(fault)
    firings(busy, fault, hits=77, actor="write")
    assert firings(busy, fault, actor="load") == quiet


def test_another_number_in_the_fault_keeps_its_firings() -> None:
    assert firings(injector_of(delay(0.3, us=800)), delay()) == firings(injector_of(delay(0.3, us=5)), delay())


def test_faults_that_fire_together_are_merged_and_all_named() -> None:
    stalls = [Fault(POINT, Stall(us)) for us in (900, 400)]
    injector = injector_of(delay(us=100), delay(us=50), *stalls, Fault(POINT, Reorder()))
    decision = injector.hit(POINT, "load")
    assert decision is not None
    assert (decision.delay_us, decision.stall_until_us, decision.reorder) == (150, 900, True)
    for each in (decision, decision, Decision(fault=f"{POINT}.delay")):
        injector.overtaken(each)
    assert injector.counts[f"{POINT}.reorder"].reordered == 2
    assert injector.counts[f"{POINT}.delay"].reordered == 5  # two of that name at two operations, one at one


def test_a_fault_of_time_is_told_when_the_stack_has_carried_it_out() -> None:
    told: list[Event] = []
    injector = injector_of(delay(), sinks=(told.append,))
    decision = injector.hit(POINT, "load")
    assert decision is not None and told == []
    injector.carried_out(decision, POINT, 950.0, 800.0, op=("load", 3))
    assert told == [FaultEvent(f"{POINT}.delay", POINT, 950.0, 800.0, ("load", 3))]


def test_evictions_add_up() -> None:
    evict = Fault("memory.evict", Evict(64))
    decision = injector_of(evict, evict).hit("memory.evict", "scheduler")
    assert decision is not None
    assert (decision.evict_tokens, decision.delay_us) == (128, 0.0)


def test_a_client_fault_says_how_long_in_its_delay() -> None:
    decision = injector_of(Fault("client.slow_reader", Slow(5000))).hit("client.slow_reader", "s1")
    assert decision is not None
    assert (decision.delay_us, decision.kind) == (5000, "slow")


def test_a_firing_off_the_device_is_told_at_once_with_its_actor() -> None:
    told: list[Event] = []
    injector = injector_of(Fault("client.abort", Abort(5)), sinks=(told.append,))
    injector.hit("client.abort", "s1")
    assert told == [FaultEvent("client.abort.abort", "client.abort", 125.0, 5, None, "s1")]


def test_a_firing_on_the_device_is_told_by_the_device() -> None:
    told: list[Event] = []
    injector_of(delay(), sinks=(told.append,)).hit(POINT, "load")
    assert told == []


def test_the_time_told_is_that_of_the_running_loop() -> None:
    told: list[Event] = []
    injector = Injector((Fault("client.abort", Abort()),), 7, (told.append,))

    async def main() -> None:
        await asyncio.sleep(0.25)
        injector.hit("client.abort", "s1")

    run_virtual(main(), IdleWorld())
    (event,) = told
    assert isinstance(event, FaultEvent)
    assert event.at_us == 250_000.0


def test_events_pass_on_to_every_sink_in_order() -> None:
    first: list[Event] = []
    second: list[Event] = []
    event = FaultEvent("x", "y", 1.0)
    injector_of(sinks=(first.append, second.append)).emit(event)
    assert first == second == [event]


def test_actors_are_forgotten_when_there_are_too_many(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(injector_module, "ACTORS_MAX", 10)
    injector = injector_of(delay())
    for number in range(100):
        injector.hit(POINT, f"s{number}")
        injector.hit(POINT, "always there")
    assert len(injector._hits[POINT]) == 10
    assert injector._hits[POINT]["always there"] == 100
