"""What is perturbed in a running server: a fault plan, and guards that are taken away. Thread-safe."""

import threading
import time
import tomllib

import msgspec

from repro.base.errors import ScenarioError, nearest
from repro.base.strict import to_struct
from repro.fault import plan
from repro.fault.injector import FaultCounts, Injector
from repro.fault.kinds import Delay

POINTS = ("loadback.copy_layer", "writeback.copy_layer")
DEFECTS = ("hicache_wrapper_no_wait",)  # forward passes do not wait for a load-back


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tables of a scenario file that a running server takes."""

    defects: tuple[str, ...] = ()
    fault: tuple[plan.Fault, ...] = ()
    seed: int = 0


class Counts(msgspec.Struct, frozen=True):
    """What became of the plan so far."""

    defects: tuple[str, ...]
    faults: dict[str, FaultCounts]  # `reordered` stays 0: a real server does not report it; the next fields do
    waits: int  # waits for a layer of a load-back
    waits_held: int  # waits for a layer that was not loaded yet
    left_out: int  # waits that a defect has taken away
    early: int  # waits that were skipped before their layer was loaded: early reads


def read(text: str, where: str) -> Plan:
    """Return the plan of a TOML text. Raises ScenarioError for what a running server cannot do."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{where}: not valid TOML: {error}") from error
    found = to_struct(tables, Plan, where)
    for name in found.defects:
        if name not in DEFECTS:
            raise ScenarioError(
                f'{where} defects: "{name}" can\'t be given to a running server; nearest: "{nearest(name, DEFECTS)}"'
            )
    plan.check(found.fault, where)
    for number, fault in enumerate(found.fault, 1):
        if fault.at not in POINTS or not isinstance(fault.do, Delay):
            raise ScenarioError(
                f'{where} [[fault]] {number}: a running server takes do.kind = "delay" at {" and ".join(POINTS)}'
            )
    return found


class Switches:
    """The plan in force in one process of a server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.use(Plan())

    def use(self, new: Plan) -> None:
        """Replace the plan; counts start anew."""
        with self._lock:
            self._plan = new
            self._injector = Injector(new.fault, new.seed, now_us=lambda: time.monotonic() * 1e6)
            self._waits = [0, 0, 0, 0]

    def delay_s(self, point: str, actor: str, layer: int) -> float:
        """Return how long an operation is to be held up."""
        with self._lock:
            decision = self._injector.hit(point, actor, layer)
        return 0.0 if decision is None else decision.delay_us / 1e6

    def waits(self, loaded: bool) -> bool:
        """Return whether a reader waits for its layer of a load-back, `loaded` already or not, and count."""
        with self._lock:
            left_out = "hicache_wrapper_no_wait" in self._plan.defects
            self._waits[2 * left_out] += 1
            self._waits[2 * left_out + 1] += not loaded
        return not left_out

    def counts(self) -> Counts:
        """Return what became of the plan so far."""
        with self._lock:
            faults = {name: msgspec.structs.replace(count) for name, count in self._injector.counts.items()}
            return Counts(self._plan.defects, faults, *self._waits)
