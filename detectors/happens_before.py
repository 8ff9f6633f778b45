"""Vector clocks over streams and the host, rebuilt from recorded events.

Actors are the streams and the hosts. Edges: order on a stream, event record to wait, enqueue (host to
stream), what a host learnt by query or synchronise, and a message from one host to another. Not edges:
time, sleep, bookkeeping, a shared copy engine, and one owner's free before the next one's alloc.
"""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from repro.base.probe import Event, HostMessage, HostSync, Op, OpRef

Clock = NDArray[np.int64]  # by actor: the last index known to have happened before; -1 for none

ACTORS_MAX = 64
CLOCKS_KEPT = 16_384  # per stream: a load-back of 78 layers and 100,000 tokens takes 15,000 copies


class _Kept:
    """The latest clocks of one actor, by an index that only grows."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self.indices: list[int] = []
        self.clocks: list[Clock] = []

    def append(self, index: int, clock: Clock) -> None:
        """Keep a clock; drop old ones now and then, so that twice `kept` is the most there is."""
        self.indices.append(index)
        self.clocks.append(clock)
        if len(self.clocks) > 2 * self._kept:
            del self.indices[: self._kept], self.clocks[: self._kept]


class HappensBefore:
    """The clocks of the operations seen so far. Operations must come in the order they ended.

    What is older than the last `kept` operations of a stream is forgotten. A wait for such an operation
    is no problem as long as the waiter knows it already, which it does unless it slept all that time.
    """

    def __init__(self, kept: int = CLOCKS_KEPT) -> None:
        self.actors: dict[str, int] = {}
        self._kept = kept
        self._streams: dict[str, _Kept] = {}
        self._hosts: dict[str, _Kept] = {}
        self._host("")

    def actor(self, stream: str) -> int:
        """Return the column of a stream."""
        column = self.actors.setdefault(stream, len(self.actors))
        assert column < ACTORS_MAX, f"stream {stream} is one more than the {ACTORS_MAX - 1} that are told apart"
        return column

    def host_clock(self, name: str) -> Clock:
        """Return what a host knows by now; valid until it learns more."""
        return self._host(name).clocks[-1]

    def feed(self, event: Event) -> Clock | None:
        """Take an event; return the clock of an operation, None for anything else."""
        if isinstance(event, Op):
            return self._operation(event)
        if isinstance(event, HostSync):
            self._host_learns(event)
        elif isinstance(event, HostMessage):
            self._receives(event)
        return None

    def _host(self, name: str) -> _Kept:
        """Return what a host knew when; its column is named after it."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Kept(self._kept)
            host.append(-1, np.full(ACTORS_MAX, -1, np.int64))
            self.actor(_host_column(name))
        return host

    def _host_learns(self, sync: HostSync) -> None:
        host = self._host(sync.by)
        known = host.clocks[-1]
        if known[self.actor(sync.source[0])] < sync.source[1]:
            clock = known.copy()
            self._join(clock, sync.source)
            host.append(sync.host, clock)

    def _receives(self, message: HostMessage) -> None:
        target = self._host(message.target)
        clock = np.maximum(target.clocks[-1], self._known(message.source, message.sent))
        sender = self.actor(_host_column(message.source))
        clock[sender] = max(clock[sender], message.sent)
        target.append(message.received, clock)

    def _operation(self, op: Op) -> Clock:
        stream = self._streams.setdefault(op.stream, _Kept(self._kept))
        clock = self._known(op.by, op.host).copy()
        if stream.clocks:
            last = stream.indices[-1]
            assert op.index == last + 1, f"{op.stream}: operation {op.index} came after {last}; some are missing"
            np.maximum(clock, stream.clocks[-1], out=clock)
        for edge in op.after:
            self._join(clock, edge.source)
        host = self.actor(_host_column(op.by))
        clock[host] = max(clock[host], op.host)
        clock[self.actor(op.stream)] = op.index
        stream.append(op.index, clock)
        return clock

    def _known(self, name: str, at: int) -> Clock:
        """Return what a host knew when its clock was `at`."""
        host = self._host(name)
        place = bisect_right(host.indices, at) - 1
        assert place >= 0, (
            f"what {_host_column(name)} knew at its clock {at} is more than {self._kept} host synchronisations old; "
            "raise CLOCKS_KEPT"
        )
        return host.clocks[place]

    def _join(self, clock: Clock, source: OpRef) -> None:
        """Let `clock` cover an operation and everything that happened before it."""
        name, index = source
        if clock[self.actor(name)] >= index:
            return  # covered already, and with it all that it covers
        stream = self._streams.get(name)
        assert stream is not None and index <= stream.indices[-1], (
            f"somebody waited for operation {index} of stream {name}, which was never seen to end"
        )
        place = index - stream.indices[0]
        assert place >= 0, (
            f"somebody waited for operation {index} of stream {name}, {stream.indices[-1] - index} operations "
            f"back; only {self._kept} are kept for sure: raise CLOCKS_KEPT"
        )
        np.maximum(clock, stream.clocks[place], out=clock)


def _host_column(name: str) -> str:
    return f"host {name}" if name else "host"
