"""Mutation of the stack at a size that a test can afford: what is found, what is caught, what is shown redundant."""

import signal
from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
import pytest

from repro.base.errors import UsageError
from repro.base.probe import Edge, NullProbes, Op
from repro.fault.kinds import Abort
from repro.fault.plan import Fault, When
from repro.run.checkpoint import load_checkpoint
from repro.scenario.overrides import overridden
from repro.scenario.schema import Scenario, find
from repro.schedule.overrides import Overrides
from repro.search.mutate import study
from repro.search.mutate.command import run_mutate
from repro.search.mutate.redundant import implied_by, orders_no_pages
from repro.search.mutate.sites import Altered, Mutant, Sites, applied, does_nothing, left_out, plain, static_mutants
from repro.search.mutate.study import Watching, fate, in_stamps, watch
from repro.serve.device.sim import SimDevice
from repro.serve.device.streams import SimEvent, SimStream
from repro.serve.engine import Engine
from repro.serve.guards import Guards
from repro.serve.guards.decisions import Decisions
from repro.serve.guards.waits import Waits
from repro.serve.kv.radix.tree import RadixTree
from repro.serve.stack import build
from tests.small import small_scenario

INDEX = "index keys of this layer are loaded back"
LATENTS = "latents of this layer are loaded back"


@pytest.fixture(scope="module")
def workload() -> Scenario:
    return msgspec.structs.replace(small_scenario(), defects=(), exercise={})


@pytest.fixture(scope="module")
def sites(workload: Scenario) -> Sites:
    found, said = watch(Watching(workload, 7))
    assert said == ""
    return found


def test_waits_records_and_acknowledgements_are_found_by_watching(sites: Sites) -> None:
    assert {Mutant("wait", INDEX), Mutant("record", "loadN.layerN"), Mutant("acknowledge", "write.done")} <= (
        sites.mutants
    )
    assert {INDEX, LATENTS} <= sites.waits_for["loadN.layerN"]
    assert sites.waits_of["before_index_read"] == {INDEX}


def test_every_guard_and_every_pin_is_a_mutant() -> None:
    assert {mutant.name for mutant in static_mutants() if mutant.kind == "guard"} == {
        field.name for group in (Waits, Decisions) for field in fields(group)
    }
    assert {mutant.name for mutant in static_mutants() if mutant.kind == "pin"} == {"pin", "pin_host"}


def test_a_ring_of_several_workers_is_one_site() -> None:
    assert plain("P12.load2.layer11") == "loadN.layerN" and plain("write.done") == "write.done"


@pytest.mark.parametrize("mutant", [Mutant("wait", INDEX), Mutant("guard", "before_index_read")])
def test_a_wait_that_holds_something_is_caught(mutant: Mutant, workload: Scenario, sites: Sites) -> None:
    row = fate(mutant, [workload], (7,), {workload.name: sites})
    assert row.outcome == "caught" and "ordering" in row.by


def test_an_acknowledgement_that_comes_at_once_is_caught_by_the_detectors(workload: Scenario, sites: Sites) -> None:
    row = fate(Mutant("acknowledge", "write.done"), [workload], (7,), {workload.name: sites})
    assert row.outcome == "caught" and "ordering" in row.by


@pytest.mark.parametrize("mutant", [Mutant("wait", LATENTS), Mutant("guard", "before_latent_read")])
def test_a_wait_that_others_imply_is_redundant_and_they_are_named(
    mutant: Mutant, workload: Scenario, sites: Sites
) -> None:
    row = fate(mutant, [workload], (7,), {workload.name: sites})
    assert row.outcome == "redundant" and INDEX in row.by


@pytest.mark.parametrize("mutant", [Mutant("guard", "before_broadcast"), Mutant("wait", "of other code")])
def test_what_no_workload_comes_by_survives_without_a_run(mutant: Mutant, workload: Scenario, sites: Sites) -> None:
    row = fate(mutant, [workload], (7,), {workload.name: sites})
    assert (row.outcome, row.by, row.runs) == ("survived", "no workload comes by it", 0)


def test_a_trap_is_redundant_where_what_springs_it_is_caught_without_it() -> None:
    abort = Fault("client.abort", Abort(500_000), When(0.5))
    springs, calm = (
        msgspec.structs.replace(small_scenario(), defects=(), exercise={}, faults=faults) for faults in ((abort,), ())
    )
    reached = {springs.name: Sites()}  # of both
    row = fate(Mutant("guard", "on_double_free"), [springs], (7,), reached)
    assert row.outcome == "redundant" and "sched_double_free" in row.by and "ownership" in row.by
    row = fate(Mutant("guard", "on_double_free"), [calm], (7,), reached)
    assert row.outcome == "survived" and row.by == "only raises, and nothing springs it"


def test_a_stack_that_breaks_elsewhere_has_not_sprung_the_trap(
    workload: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_complaint_of", lambda *_: "the stack itself: AssertionError of something else")
    row = fate(Mutant("guard", "on_double_free"), [workload], (7,), {workload.name: Sites()})
    assert (row.outcome, row.by) == ("survived", "only raises, and nothing springs it")


def test_an_acknowledgement_that_never_had_to_wait_is_asked_for_its_orders(sites: Sites) -> None:
    assert "loadN.layerN" not in sites.refused and sites.learnt_of["loadN.layerN"]
    assert all(why.startswith("query load") for why in sites.learnt_of["loadN.layerN"])


def test_a_mutant_is_of_one_stack_and_leaves_the_classes_as_they_are(workload: Scenario) -> None:
    parts = SimStream.wait, SimEvent.record, RadixTree.pin
    altered = applied(Mutant("pin", "pin"))
    stacks = [
        make(in_stamps(workload).config, load_checkpoint(workload.config).model, SimDevice(), Guards(), NullProbes())
        for make in (altered.build, build)
    ]
    trees = [stack.cache.tree for stack in stacks if isinstance(stack, Engine)]
    nodes = [tree.insert(range(tree.page_tokens), np.array([1], np.int32)).node for tree in trees]
    for tree, node in zip(trees, nodes, strict=True):
        tree.pin(node)
    assert [node.pins for node in nodes] == [0, 1]
    assert parts == (SimStream.wait, SimEvent.record, RadixTree.pin)


def test_a_guard_that_is_left_out_says_yes_and_nothing_else() -> None:
    guards = Guards()
    assert left_out(guards.decisions.transfer_arrived)(frozenset({"latent"})) is True
    assert left_out(guards.decisions.loaded_layers)(range(6), range(0)) == ()
    assert left_out(guards.decisions.first_loaded)(5) == 0
    assert left_out(guards.decisions.on_double_free)("page 3") is None


def test_a_guard_that_is_empty_is_told_from_one_that_waits() -> None:
    assert does_nothing(Guards().waits.before_index_store)
    assert not does_nothing(Guards().waits.before_index_read) and not does_nothing(Guards().decisions.on_double_free)
    assert not does_nothing(Guards().decisions.still_owner), "it answers False"


def op(stream: str, index: int, *after: Edge) -> Op:
    return Op(stream, index, "x", 0, 0, "", 0, 0.0, float(index), index + 1.0, after)


def test_an_edge_is_implied_only_where_another_way_leads() -> None:
    one_way = [op("load", 0), op("compute", 0, Edge(("load", 0), "a"))]
    assert implied_by(one_way, frozenset({"a"})) is None
    assert implied_by(one_way, frozenset({"c"})) is None  # it is not there
    two_ways = [op("load", 0), op("compute", 0, Edge(("load", 0), "a"), Edge(("load", 0), "b"))]
    assert implied_by(two_ways, frozenset({"a"})) == ("b",)
    along_the_stream = [
        *two_ways[:1],
        op("compute", 0, Edge(("load", 0), "b")),
        op("compute", 1, Edge(("load", 0), "a")),
    ]
    assert implied_by(along_the_stream, frozenset({"a"})) == ("b",)


def test_of_the_edges_of_a_wait_only_those_that_were_asked_about_must_be_implied() -> None:
    events = [op("load", 0), op("load", 1), op("compute", 0, Edge(("load", 0), "b"), Edge(("load", 0), "a"))]
    events.append(op("compute", 1, Edge(("load", 1), "a")))
    assert implied_by(events, frozenset({"a"})) is None
    assert implied_by(events, frozenset({"a"}), {("a", ("load", 0))}) == ("b",)
    assert implied_by(events, frozenset({"a"}), {("a", ("load", 1))}) is None


def test_a_wait_that_no_page_needs_is_there_for_pace(workload: Scenario) -> None:
    events = next(study._logs([workload], 7))
    assert not orders_no_pages(events, frozenset((INDEX, LATENTS)))
    assert not orders_no_pages(events, frozenset(("of other code",)))  # it is not there
    ranks = overridden(find("generic_layersplit"), Overrides(stamps=True, sessions=(0, 1), turns=1))
    ranks = msgspec.structs.replace(ranks, exercise={})
    found, said = watch(Watching(ranks, 7))
    assert said == ""
    for mutant in (Mutant("wait", "a layer is broadcast when it begins, not ahead"), Mutant("record", "begun")):
        row = fate(mutant, [ranks], (7,), {ranks.name: found})
        assert row.outcome == "survived" and row.by.startswith("for pace alone: ")


def test_a_scenario_with_a_defect_is_no_workload() -> None:
    from rich.console import Console

    with pytest.raises(UsageError, match="has a defect"):
        run_mutate([small_scenario()], range(1), 1, False, Console(quiet=True), Console(quiet=True))


def test_a_run_that_goes_round_in_circles_ends_by_its_processor_time() -> None:
    with study._bounded(0.05) as over:
        while True:
            pass
    assert over == [study.CIRCLES] and "never ends" in study.CIRCLES
    with study._bounded(60.0) as over:
        pass  # and nothing goes off afterwards
    assert over == []
    assert signal.getitimer(signal.ITIMER_PROF) == signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_run_that_swallows_what_was_to_end_it_is_not_believed(
    workload: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowing(workload: Scenario, seed: int, altered: Altered, root: Path) -> str:
        try:
            while True:
                pass
        except Exception:
            return "ownership"

    monkeypatch.setattr(study, "PROCESSOR_S_MIN", 0.05)
    monkeypatch.setattr(study, "_complaint_of", swallowing)
    assert study._noticed(workload, 7, Altered(), 0.0) == study.CIRCLES


def test_a_workload_whose_usual_time_nobody_knows_has_no_processor_bound(
    workload: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    def armed(workload: Scenario, seed: int, altered: Altered, root: Path) -> str:
        return repr([signal.getitimer(timer)[0] > 0 for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL)])

    monkeypatch.setattr(study, "_complaint_of", armed)
    assert study._noticed(workload, 7, Altered()) == "[False, True]"
    assert study._noticed(workload, 7, Altered(), 0.0) == "[True, True]"
