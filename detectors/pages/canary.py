"""Reads of bytes that are not the expected ones (layer 2 of the truth).

The stack compares the stamps that travel with the bytes at each read and records what differs. A
first-hand wrong read makes a request corrupted; meeting rows that such a request stored makes the
reader poisoned, and the origin is named.
"""

from copy import deepcopy
from functools import partial

from detectors.base import Answer, Causes, DetectorVerdict, Finding, Marks
from detectors.evidence import PageRead
from repro.base.probe import BadRead, Event, Op

EXAMPLES_MAX = 5
UNKNOWN = "an earlier request"  # the origin of a taint whose read is not in the record


class CanaryDetector:
    """Feed it the event stream; see `detectors.base.EventDetector`."""

    name = "canary"

    def __init__(self) -> None:
        self._pending: list[BadRead] = []  # reads whose operation has not ended: it tells their operation's name
        self._requests: dict[int, str] = {}  # bad read -> request
        self._causes = Causes(EXAMPLES_MAX)
        self.corrupted: dict[str, int] = {}  # request -> its first bad read
        self.poisoned: dict[str, str] = {}  # request -> the request whose wrong read it inherited
        self._checked = 0

    def feed(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, BadRead):
            self._requests[event.id] = event.request
            self._pending.append(event)
            if not event.origin:
                self.corrupted.setdefault(event.request, event.id)
            elif (origin := self._requests.get(event.origin, UNKNOWN)) != event.request:
                self.poisoned.setdefault(event.request, origin)
        elif isinstance(event, Op):
            # Copies move stamps along and check none; the reads of a step name their request. Rows have no stamps.
            self._checked += sum(
                not access.write and access.request != "" and access.component != "row" for access in event.accesses
            )
            if self._pending:
                self._settle(event)

    def verdict(self) -> DetectorVerdict:
        """Return the answer about all events fed so far."""
        causes = deepcopy(self._causes) if self._pending else self._causes
        for bad in self._pending:  # the run broke off before their operations ended
            self._add(causes, bad, None)
        found = causes.findings()
        answer: Answer = "anomaly" if found else ("clean" if self._checked else "not_applicable")
        why = "" if self._checked else "no read was checked: the target keeps no stamps"
        marks = Marks(corrupted=frozenset(self.corrupted), poisoned=dict(self.poisoned))
        return DetectorVerdict(self.name, answer, found, why, self._checked, marks)

    def _settle(self, op: Op) -> None:
        still = []
        for bad in self._pending:
            if (bad.stream, bad.index) == (op.stream, op.index):
                self._add(self._causes, bad, op)
            else:
                still.append(bad)
        self._pending = still

    def _add(self, causes: Causes, bad: BadRead, op: Op | None) -> None:
        kind = "taint" if bad.origin else "foreign bytes"
        name = op.name if op else f"an operation of stream {bad.stream}"
        signature = f"canary: {name} reads {bad.component} rows: {kind}"
        causes.add(signature, partial(self._finding, bad, name, op.site if op else "", signature))

    def _finding(self, bad: BadRead, name: str, site: str, signature: str) -> Finding:
        origin = self._requests.get(bad.origin, UNKNOWN) if bad.origin else ""
        what = f"rows that {origin} stored from wrong bytes" if origin else "rows that are not its own prefix"
        claim = (
            f"{bad.request}: {name}, layer {bad.layer}, read {bad.tokens} {bad.component} {what}, "
            f"from position {bad.first_position} on"
        )
        evidence = PageRead(
            bad.stream, bad.index, name, site, bad.component, bad.layer, bad.request, bad.tokens, bad.first_position,
            bad.pages, origin,
        )  # fmt: skip
        return Finding(self.name, "canary", claim, signature, bad.request, bad.at_us, 1, evidence)
