"""A fault plan as plain data: a `Fault` is a [[fault]] of a scenario file, a kind of `kinds` at a point of `points`."""

import msgspec

from repro.base.errors import ScenarioError, nearest
from repro.fault.kinds import AnyKind
from repro.fault.points import POINTS, names_of


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which hits of the point the fault takes: each with `probability`, after `skip`, at most `times`."""

    probability: float = 1.0
    skip: int = 0
    times: int | None = None

    def wrong(self) -> str:
        """Return what is wrong with the numbers, in words; "" for nothing."""
        if not 0 < self.probability <= 1:
            return f"when.probability = {self.probability}; must be above 0 and at most 1"
        if self.skip < 0:
            return f"when.skip = {self.skip}; must be at least 0"
        if self.times is not None and self.times < 1:
            return f"when.times = {self.times}; must be at least 1"
        return ""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault of a plan."""

    at: str
    do: AnyKind
    when: When = When()

    @property
    def name(self) -> str:
        """Return the fault's name in reports: point.kind."""
        return f"{self.at}.{self.do.name}"


def check(faults: tuple[Fault, ...], where: str) -> None:
    """Raise ScenarioError for a fault that could never be carried out as written."""
    for number, fault in enumerate(faults, 1):
        if wrong := _impossible(fault) or fault.when.wrong() or fault.do.wrong():
            raise ScenarioError(f"{where} [[fault]] {number}: {wrong}")


def _impossible(fault: Fault) -> str:
    """Return why a kind is not possible at its point, in words; "" where it is."""
    if fault.at not in POINTS:
        return f'at = "{fault.at}" is no probe point; nearest: "{nearest(fault.at, POINTS)}"; `repro faults` shows them'
    kinds = POINTS[fault.at].kinds
    if type(fault.do) in kinds:
        return ""
    return f'do.kind = "{fault.do.name}" is not possible at {fault.at}; use one of: {", ".join(names_of(kinds))}'
