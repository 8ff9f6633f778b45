"""Faults as plain data, and the table of points where they may be put.

A fault is legal when a correct server must survive it without a wrong byte: it perturbs time, order or pressure,
never data. A corrupting one changes bytes behind the server's back: no server survives it, and the detectors must
see it. `repro.fault.catalogue` says what each one does.
"""

import msgspec

from repro.base.errors import ScenarioError, nearest

TIMING = ("delay", "stall", "reorder")
MESSAGE = ("delay", "drop", "duplicate")
CORRUPTING = ("flip", "zero", "nan", "swap", "stale", "misdirect", "partial")
PLACES = ("memory.in_use", "memory.cached", "memory.host", "memory.in_flight", "memory.draft")
POINTS: dict[str, tuple[str, ...]] = {
    "loadback.copy_layer": TIMING,
    "writeback.copy_layer": TIMING,
    "storage.read": TIMING,
    "storage.write": TIMING,
    "storage.latent": ("fail",),
    "storage.index": ("fail",),
    "storage.file": ("fail", "tear"),
    "forward.upload": TIMING,
    "forward.embed": TIMING,
    "forward.store": TIMING,
    "forward.index": TIMING,
    "forward.attend": TIMING,
    "forward.feed_forward": TIMING,
    "forward.sample": TIMING,
    "forward.download": TIMING,
    "transfer.write": TIMING,
    "transfer.write_slot": TIMING,
    "transfer.read_slot": TIMING,
    "transfer.latent": ("fail",),
    "transfer.index": ("fail",),
    "pd.destination": MESSAGE,
    "pd.done": MESSAGE,
    "pd.abort": MESSAGE,
    "pd.safe": MESSAGE,
    "pd.prefill_worker": ("kill",),
    "spec.store": TIMING,
    "spec.index": TIMING,
    "spec.attend": TIMING,
    "spec.propose": TIMING,
    **{
        f"split.{operation}": TIMING
        for operation in (
            "project",
            "store_index",
            "store_latent",
            "broadcast_index",
            "broadcast_latent",
            "receive_index",
            "receive_latent",
            "gather_rows",
            "gathered_rows",
            "gather_tokens",
            "gathered_tokens",
        )
    },
    "split.rank": ("kill",),
    "memory.evict": ("evict",),
    **dict.fromkeys(PLACES, CORRUPTING),
    "client.abort": ("abort",),
    "client.disconnect": ("disconnect",),
    "client.slow_reader": ("slow",),
    "client.burst": ("burst",),
    "client.order": ("order",),
}
DELAY_US_MAX = 60e6
STALL_UNTIL_US_MAX = 3600e6
NEED_US = ("delay", "stall", "slow", "burst")
WITHOUT_US = ("reorder", "evict", "drop", "duplicate", "fail", "tear", "kill", *CORRUPTING)


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which hits of the point the fault takes: each with `probability`, after `skip`, at most `times`."""

    probability: float = 1.0
    skip: int = 0
    times: int | None = None


class Do(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the fault does. `us` is how long: a delay; the virtual time at which a stall ends; when after
    sending the client aborts or disconnects; a slow reader's pause; a burst's period; the longest that a
    request waits for other sessions. `tokens` is how many cached tokens to evict."""

    kind: str
    us: float = 0.0
    tokens: int = 0


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault of a plan."""

    at: str
    do: Do
    when: When = When()

    @property
    def name(self) -> str:
        """Return the fault's name in reports: point.kind."""
        return f"{self.at}.{self.do.kind}"

    @property
    def timing(self) -> bool:
        """Return whether the fault is there to change an order of operations."""
        return self.do.kind in TIMING

    @property
    def corrupting(self) -> bool:
        """Return whether the fault changes bytes, so that no correct server survives it."""
        return self.do.kind in CORRUPTING


def check(faults: tuple[Fault, ...], where: str) -> None:
    """Raise ScenarioError for a fault that could never be carried out as written."""
    for number, fault in enumerate(faults, 1):
        place = f"{where} [[fault]] {number}"
        if fault.at not in POINTS:
            raise ScenarioError(
                f'{place}: at = "{fault.at}" is no probe point; nearest: "{nearest(fault.at, POINTS)}"; '
                "`repro faults` shows them"
            )
        kinds = POINTS[fault.at]
        if fault.do.kind not in kinds:
            raise ScenarioError(
                f'{place}: do.kind = "{fault.do.kind}" is not possible at {fault.at}; use one of: {", ".join(kinds)}'
            )
        _check_numbers(fault, place)


def _check_numbers(fault: Fault, place: str) -> None:
    when, do = fault.when, fault.do
    if not 0 < when.probability <= 1:
        raise ScenarioError(f"{place}: when.probability = {when.probability}; must be above 0 and at most 1")
    if when.skip < 0:
        raise ScenarioError(f"{place}: when.skip = {when.skip}; must be at least 0")
    if when.times is not None and when.times < 1:
        raise ScenarioError(f"{place}: when.times = {when.times}; must be at least 1")
    if do.kind in NEED_US and not do.us > 0:
        raise ScenarioError(f"{place}: do.us = {do.us}; a fault of kind {do.kind} takes more than 0")
    us_max = STALL_UNTIL_US_MAX if do.kind == "stall" else DELAY_US_MAX
    if not 0 <= do.us <= us_max:
        raise ScenarioError(f"{place}: do.us = {do.us}; must be at least 0 and at most {us_max:.0f}")
    if do.kind in WITHOUT_US and do.us:
        raise ScenarioError(f"{place}: do.us = {do.us} means nothing to a fault of kind {do.kind}; leave it out")
    if do.kind == "evict" and do.tokens < 1:
        raise ScenarioError(f"{place}: do.tokens = {do.tokens}; say how many cached tokens to evict, at least 1")
    if do.kind != "evict" and do.tokens:
        raise ScenarioError(
            f"{place}: do.tokens = {do.tokens} means nothing to a fault of kind {do.kind}; leave it out"
        )
