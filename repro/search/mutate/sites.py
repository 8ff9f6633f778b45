"""The places where the stack holds an order, found by watching it run, and how each is taken away.

Nothing here lists them by hand: a wait, a record, a host synchronisation or an acknowledgement is found when
the simulated device is asked for it, a pin by having its opposite in the radix tree, a guard by being a field of
`Guards`. A wait of new code is a mutant the next time the workloads come by it.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from types import CodeType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints
from unittest.mock import patch

import msgspec

from repro.base.probe import OpRef
from repro.fault.defects import DEFECTS, Defect
from repro.serve.device.base import Event, Stream
from repro.serve.device.streams import SimEvent, SimStream, query_why
from repro.serve.guards import Guards
from repro.serve.kv.radix.tree import RadixTree

Kind = Literal["wait", "record", "synchronise", "acknowledge", "pin", "guard"]
MUTANT = "mutant"  # the name under which a guard that is left out is known as a defect
Brought = tuple[str, OpRef]  # the why of an edge, and its source
PINS = tuple(name for name in vars(RadixTree) if f"un{name}" in vars(RadixTree))


class Mutant(msgspec.Struct, frozen=True, order=True):
    """One thing that is taken away. `name` is the wait's or synchronisation's why, else what it is called."""

    kind: Kind
    name: str


class Sites(msgspec.Struct):
    """What runs came by: the whys of the waits for each event, and of those that each guard brings."""

    mutants: set[Mutant] = set()
    waits_for: dict[str, set[str]] = {}
    edges_of: dict[str, set[Brought]] = {}  # those that the waits for each event brought
    waits_of: dict[str, set[str]] = {}
    learnt_of: dict[str, set[str]] = {}  # the whys of what the host learnt by each acknowledgement
    refused: set[str] = set()  # acknowledgements that were not there yet when they were asked for
    took_s: float = 0.0  # of processor time, the longest of the runs

    def add(self, other: "Sites") -> None:
        """Take in what another run came by."""
        self.mutants |= other.mutants
        self.refused |= other.refused
        self.took_s = max(self.took_s, other.took_s)
        for mine, others in (
            (self.waits_for, other.waits_for),
            (self.waits_of, other.waits_of),
            (self.learnt_of, other.learnt_of),
        ):
            for name, whys in others.items():
                mine.setdefault(name, set()).update(whys)
        for name, edges in other.edges_of.items():
            self.edges_of.setdefault(name, set()).update(edges)

    def wait(self, mutant: Mutant, event: SimEvent, caller: CodeType) -> None:
        """Note a wait or synchronisation for an event, and the guard that asked for it, if one did."""
        name = plain(event.name)
        self.mutants.add(mutant)
        self.waits_for.setdefault(name, set()).add(mutant.name)
        self.edges_of.setdefault(name, set()).update((mutant.name, marker.ref) for marker in event.markers)
        for guard in fields(Guards):
            if getattr(guard.default, "__code__", None) is caller:
                self.waits_of.setdefault(guard.name, set()).add(mutant.name)


def plain(event: str) -> str:
    """Return an event's name without worker and numbers: all of a ring are one site."""
    return re.sub(r"\d+", "N", re.sub(r"^[A-Z]\d+\.", "", event))


def static_mutants() -> list[Mutant]:
    """Return those that need no run to be found: pins and guards."""
    return [Mutant("pin", name) for name in PINS] + [Mutant("guard", field.name) for field in fields(Guards)]


@contextmanager
def watched(sites: Sites) -> Iterator[None]:
    """Note every wait, record, synchronisation, acknowledgement and pin while this lasts, and in scenarios with
    the defect `MUTANT` every guard that is called."""
    wait, record, query = SimStream.wait, SimEvent.record, SimEvent.query
    of_event, of_stream = SimEvent.synchronize, SimStream.synchronize

    def watched_wait(self: SimStream, event: Event, why: str) -> None:
        assert isinstance(event, SimEvent)
        sites.wait(Mutant("wait", why), event, sys._getframe(1).f_code)
        wait(self, event, why)

    def watched_record(self: SimEvent, stream: Stream) -> None:
        sites.mutants.add(Mutant("record", plain(self.name)))
        record(self, stream)

    def watched_query(self: SimEvent) -> bool:
        reached, name = query(self), plain(self.name)
        sites.mutants.add(Mutant("acknowledge", name))
        sites.learnt_of.setdefault(name, set()).add(query_why(self.name))
        if not reached:
            sites.refused.add(name)
        return reached

    async def watched_event(self: SimEvent, why: str) -> None:
        sites.wait(Mutant("synchronise", why), self, sys._getframe(1).f_code)
        await of_event(self, why)

    async def watched_stream(self: SimStream, why: str) -> None:
        sites.mutants.add(Mutant("synchronise", why))
        await of_stream(self, why)

    with (
        patch.object(SimStream, "wait", watched_wait),
        patch.object(SimEvent, "record", watched_record),
        patch.object(SimEvent, "query", watched_query),
        patch.object(SimEvent, "synchronize", watched_event),
        patch.object(SimStream, "synchronize", watched_stream),
        patch.dict(DEFECTS, {MUTANT: _watched_guards(sites)}),
        ExitStack() as pins,
    ):
        for pin in PINS:
            body = noted(getattr(RadixTree, pin), Mutant("pin", pin), sites)
            pins.enter_context(patch.object(RadixTree, pin, body))
        yield


def _watched_guards(sites: Sites) -> Defect:
    def noting(guards: Guards) -> Guards:
        names = [field.name for field in fields(Guards)]
        return replace(guards, **{name: noted(getattr(guards, name), Mutant("guard", name), sites) for name in names})

    return Defect(MUTANT, "nothing: its guards are in place, and watched", "", noting)


def noted(function: Callable[..., Any], mutant: Mutant, sites: Sites) -> Callable[..., Any]:
    """Return what does the same, and notes that it was called."""

    def body(*arguments: Any) -> Any:
        sites.mutants.add(mutant)
        return function(*arguments)

    return body


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Take one thing away while this lasts. A guard is gone in scenarios with the defect `MUTANT`."""
    with ExitStack() as stack:
        for owner, name, body in _replaced(mutant):
            stack.enter_context(patch.object(owner, name, body))
        if mutant.kind == "guard":
            stack.enter_context(patch.dict(DEFECTS, {MUTANT: _defect(mutant.name)}))
        yield


def _replaced(mutant: Mutant) -> list[tuple[type, str, Callable[..., Any]]]:
    """Return the methods that a mutant changes: (class, name, what it is instead)."""
    name = mutant.name
    match mutant.kind:
        case "wait":
            return [(SimStream, "wait", _unless(lambda self, event, why: why == name, SimStream.wait))]
        case "record":
            return [(SimEvent, "record", _unless(lambda self, stream: plain(self.name) == name, SimEvent.record))]
        case "acknowledge":
            body = _unless(lambda self: plain(self.name) == name, SimEvent.query, instead=True)
            return [(SimEvent, "query", body)]
        case "synchronise":
            return [
                (owner, "synchronize", _unless_awaited(lambda self, why: why == name, owner.synchronize))
                for owner in (SimEvent, SimStream)
            ]
        case "pin":
            return [(RadixTree, verb, lambda self, node: None) for verb in (name, f"un{name}")]
        case "guard":
            return []


def _unless(skips: Callable[..., bool], method: Callable[..., Any], instead: object = None) -> Callable[..., Any]:
    def mutated(*arguments: Any) -> Any:
        return instead if skips(*arguments) else method(*arguments)

    return mutated


def _unless_awaited(skips: Callable[..., bool], method: Callable[..., Any]) -> Callable[..., Any]:
    async def mutated(*arguments: Any) -> None:
        if not skips(*arguments):
            await method(*arguments)

    return mutated


def _defect(guard: str) -> Defect:
    def without(guards: Guards) -> Guards:
        return replace(guards, **{guard: left_out(getattr(guards, guard))})

    return Defect(MUTANT, f"the guard {guard} is left out", "", without)


def left_out(guard: Callable[..., Any]) -> Callable[..., Any]:
    """Return what takes a guard's place when it is left out: says yes, returns nothing, waits for nothing."""
    returns = get_type_hints(guard)["return"]
    empty: Any = {bool: True, int: 0, tuple: ()}.get(get_origin(returns) or returns)

    async def says_at_once(*_: object) -> Any:
        return empty

    def says(*_: object) -> Any:
        return empty

    return says_at_once if inspect.iscoroutinefunction(guard) else says


def is_trap(guard: Callable[..., Any]) -> bool:
    """Return whether a guard does nothing but raise: a correct stack never calls it."""
    return bool(get_type_hints(guard)["return"] is NoReturn)


def does_nothing(guard: Callable[..., Any]) -> bool:
    """Return whether a guard is a docstring and no more."""

    def nothing() -> None:
        """Do nothing."""

    code = guard.__code__  # one that returns a constant has the same code, and another constant
    return code.co_code == nothing.__code__.co_code and code.co_consts[-1] is None


KINDS: tuple[Kind, ...] = get_args(Kind)
