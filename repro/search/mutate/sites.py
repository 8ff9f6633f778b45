"""The places where the stack holds an order, found by watching it run, and how each is removed.

No list of them is kept by hand: a wait, a record, a host synchronisation or an acknowledgement is found when the
simulated device is asked for it, a pin by its opposite in the radix tree, a guard as a field of `Guards`. A wait of
new code is a mutant the next time that the workloads reach it.
"""

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec

from repro.base.probe import OpRef, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device, Event, Stream
from repro.serve.device.sim import SimDevice
from repro.serve.device.streams import SimEvent, SimStream, query_why
from repro.serve.engine import LoadedModel
from repro.serve.guards import DECISIONS, WAITS, Guards
from repro.serve.kv.radix.tree import RadixTree
from repro.serve.pd.router import Router
from repro.serve.stack import Stack, build

Kind = Literal["wait", "record", "synchronise", "acknowledge", "pin", "guard"]
GUARDS = (*WAITS, *DECISIONS)
Brought = tuple[str, OpRef]  # the why of an edge, and its source
PINS = tuple(name for name in vars(RadixTree) if f"un{name}" in vars(RadixTree))


class Mutant(msgspec.Struct, frozen=True, order=True):
    """One thing that is removed. `name` is the reason that a wait or synchronisation gives, else the thing's name."""

    kind: Kind
    name: str


class Sites(msgspec.Struct):
    """The sites that runs reached. A wait is known by the reason (why) that it gives."""

    mutants: set[Mutant] = set()
    waits_for: dict[str, set[str]] = {}
    edges_of: dict[str, set[Brought]] = {}  # edges that the waits for each event brought
    waits_of: dict[str, set[str]] = {}
    learnt_of: dict[str, set[str]] = {}  # acknowledgement -> reasons of what the host learnt by it
    refused: set[str] = set()  # acknowledgements that had not come yet when they were asked for
    took_s: float = 0.0  # the longest run's processor time

    def add(self, other: "Sites") -> None:
        """Add the sites of another run."""
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
        for guard in GUARDS:
            if getattr(Guards()[guard], "__code__", None) is caller:
                self.waits_of.setdefault(guard, set()).add(mutant.name)


def plain(event: str) -> str:
    """Return an event's name without worker and numbers: all of a ring are one site."""
    return re.sub(r"\d+", "N", re.sub(r"^[A-Z]\d+\.", "", event))


def static_mutants() -> list[Mutant]:
    """Return the mutants that are found without a run: pins and guards."""
    return [Mutant("pin", name) for name in PINS] + [Mutant("guard", name) for name in GUARDS]


@dataclass(frozen=True)
class Altered:
    """The parts of a stack with something watched in them, or removed."""

    guards: Guards | None = None  # None: those of the scenario
    stream: type[SimStream] = SimStream
    event: type[SimEvent] = SimEvent
    pin: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None = None  # (pin or unpin, method) -> method

    def build(
        self, config: EngineConfig, model: LoadedModel, device: Device, guards: Guards | None, probes: Probes | None
    ) -> Stack:
        """Return the stack, made of these parts."""
        assert isinstance(device, SimDevice)
        device.stream_type, device.event_type = self.stream, self.event
        stack = build(config, model, device, guards, probes)
        if self.pin is not None:
            for tree in _trees(stack):
                for name in (verb for pin in PINS for verb in (pin, f"un{pin}")):
                    setattr(tree, name, self.pin(name, getattr(tree, name)))
        return stack


def _trees(stack: Stack) -> list[RadixTree]:
    if isinstance(stack, Router):
        return [*(each.engine.cache.tree for each in stack.prefill), *(each.engine.cache.tree for each in stack.decode)]
    return [stack.cache.tree]


def watched(sites: Sites) -> Altered:
    """Return a stack that notes every wait, record, synchronisation, acknowledgement, pin and guard."""

    class Watched(SimStream):
        def wait(self, event: Event, why: str) -> None:
            assert isinstance(event, SimEvent)
            sites.wait(Mutant("wait", why), event, sys._getframe(1).f_code)
            super().wait(event, why)

        async def synchronize(self, why: str) -> None:
            sites.mutants.add(Mutant("synchronise", why))
            await super().synchronize(why)

    class WatchedEvent(SimEvent):
        def record(self, stream: Stream) -> None:
            sites.mutants.add(Mutant("record", plain(self.name)))
            super().record(stream)

        def query(self) -> bool:
            reached, name = super().query(), plain(self.name)
            sites.mutants.add(Mutant("acknowledge", name))
            sites.learnt_of.setdefault(name, set()).add(query_why(self.name))
            if not reached:
                sites.refused.add(name)
            return reached

        async def synchronize(self, why: str) -> None:
            sites.wait(Mutant("synchronise", why), self, sys._getframe(1).f_code)
            await super().synchronize(why)

    guards = Guards()
    noting = guards.replaced(**{name: noted(guards[name], Mutant("guard", name), sites) for name in GUARDS})

    def pin(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        return noted(method, Mutant("pin", name), sites) if name in PINS else method

    return Altered(noting, Watched, WatchedEvent, pin)


def noted(function: Callable[..., Any], mutant: Mutant, sites: Sites) -> Callable[..., Any]:
    """Return a function that does the same and notes each call."""

    def body(*arguments: Any) -> Any:
        sites.mutants.add(mutant)
        return function(*arguments)

    return body


def applied(mutant: Mutant) -> Altered:
    """Return the parts of a stack without one thing."""
    match mutant.kind:
        case "guard":
            guards = Guards()
            return Altered(guards.replaced(**{mutant.name: left_out(guards[mutant.name])}))
        case "pin":
            verbs = (mutant.name, f"un{mutant.name}")
            return Altered(pin=lambda name, method: (lambda node: None) if name in verbs else method)
        case _:
            return Altered(stream=_stream_without(mutant), event=_event_without(mutant))


def _stream_without(mutant: Mutant) -> type[SimStream]:
    class Mutated(SimStream):
        def wait(self, event: Event, why: str) -> None:
            if mutant != Mutant("wait", why):
                super().wait(event, why)

        async def synchronize(self, why: str) -> None:
            if mutant != Mutant("synchronise", why):
                await super().synchronize(why)

    return Mutated


def _event_without(mutant: Mutant) -> type[SimEvent]:
    class Mutated(SimEvent):
        def record(self, stream: Stream) -> None:
            if mutant != Mutant("record", plain(self.name)):
                super().record(stream)

        def query(self) -> bool:
            return mutant == Mutant("acknowledge", plain(self.name)) or super().query()

        async def synchronize(self, why: str) -> None:
            if mutant != Mutant("synchronise", why):
                await super().synchronize(why)

    return Mutated


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
