"""Vector clocks over streams and the host, rebuilt from recorded events.

Actors are the streams and the hosts. Edges: order on a stream, event record to wait, enqueue (host to
stream), what a host learnt by query or synchronise, and a message from one host to another. Not edges:
time, sleep, bookkeeping, a shared copy engine, and one owner's free before the next one's alloc.
"""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from repro.base.probe import Edge, Event, HostMessage, HostSync, Op, OpRef

Clock = NDArray[np.int64]  # actor -> the last index known to have happened before; -1 for none

ACTORS_MAX = 64
CLOCKS_KEPT = 16_384  # remembered of each stream: a load-back of 78 layers and 100,000 tokens takes 15,000 copies


class _ClockHistory:
    """The latest clocks of one actor, at least `clocks_kept`, each by the index from which it holds; indices grow."""

    def __init__(self, clocks_kept: int) -> None:
        self._clocks_kept = clocks_kept
        self.indices: list[int] = []
        self.clocks: list[Clock] = []

    def append(self, index: int, clock: Clock) -> None:
        """Add a clock; at twice `clocks_kept` the older half is dropped."""
        self.indices.append(index)
        self.clocks.append(clock)
        if len(self.clocks) > 2 * self._clocks_kept:
            del self.indices[: self._clocks_kept], self.clocks[: self._clocks_kept]


class _Stream:
    """The clocks of a stream. Operations that learn nothing new share one array, and each raises its own column."""

    def __init__(self, column: int, last: int, clocks_kept: int) -> None:
        self.column = column
        self.last = last  # index of the last operation
        self.known: Clock | None = None  # the host's clock when the last operation was enqueued
        self.clock: Clock = np.full(ACTORS_MAX, -1, np.int64)
        self.history = _ClockHistory(clocks_kept)


class HappensBefore:
    """The clocks of the operations seen so far. Operations must come in the order they ended.

    Of each stream at least the last `clocks_kept` clocks are remembered. A wait for an older operation is no problem
    if the waiter knows that operation already, which it does unless it has waited for nothing all that time.
    """

    def __init__(self, clocks_kept: int = CLOCKS_KEPT) -> None:
        self.actors: dict[str, int] = {}  # a stream's or host's name -> its column in every clock
        self._clocks_kept = clocks_kept
        self._streams: dict[str, _Stream] = {}
        self._hosts: dict[str, _ClockHistory] = {}
        self._host("")

    def actor(self, stream: str) -> int:
        """Return the column of a stream."""
        column = self.actors.get(stream)
        if column is None:
            column = self.actors[stream] = len(self.actors)
            assert column < ACTORS_MAX, f"stream {stream} is one more than the {ACTORS_MAX - 1} that are told apart"
        return column

    def host_clock(self, name: str) -> Clock:
        """Return what a host knows by now; valid until it learns more."""
        return self._host(name).clocks[-1]

    def feed(self, event: Event) -> Clock | None:
        """Take an event; return the clock of an operation, None for anything else.

        The clock is valid until the stream's next operation: one that learns nothing new has the same array, with its
        own index in the stream's column.
        """
        if isinstance(event, Op):
            return self._operation(event)
        if isinstance(event, HostSync):
            self._host_learns(event)
        elif isinstance(event, HostMessage):
            self._receives(event)
        return None

    def _host(self, name: str) -> _ClockHistory:
        """Return what a host knew, and since when; a host that is new knows nothing."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _ClockHistory(self._clocks_kept)
            host.append(-1, np.full(ACTORS_MAX, -1, np.int64))
            self.actor(_host_column(name))
        return host

    def _host_learns(self, sync: HostSync) -> None:
        """Let a host know of the operation that it saw complete."""
        host = self._host(sync.by)
        known = host.clocks[-1]
        if known[self.actor(sync.source[0])] < sync.source[1]:
            clock = known.copy()
            self._join(clock, sync.source)
            host.append(sync.host, clock)

    def _receives(self, message: HostMessage) -> None:
        """Let a host know what the sender knew when it sent the message."""
        target = self._host(message.target)
        clock = np.maximum(target.clocks[-1], self._known(message.source, message.sent))
        sender = self.actor(_host_column(message.source))
        clock[sender] = max(clock[sender], message.sent)
        target.append(message.received, clock)

    def _operation(self, op: Op) -> Clock:
        """Return the clock of the stream's next operation."""
        known = self._known(op.by, op.host)
        stream = self._streams.get(op.stream)
        if stream is None:
            stream = self._streams[op.stream] = _Stream(self.actor(op.stream), op.index, self._clocks_kept)
        else:
            assert op.index == stream.last + 1, (
                f"{op.stream}: operation {op.index} came after {stream.last}; some are missing"
            )
        if known is not stream.known or (op.after and not self._covers(stream.clock, op.after)):
            self._learn(stream, op, known)
        stream.last = op.index
        stream.clock[stream.column] = op.index
        return stream.clock

    def _covers(self, clock: Clock, edges: tuple[Edge, ...]) -> bool:
        """Return whether a clock knows the sources of all edges."""
        for edge in edges:
            name, index = edge.source
            if clock[self.actor(name)] < index:
                return False
        return True

    def _learn(self, stream: _Stream, op: Op, known: Clock) -> None:
        """Begin a new clock: it joins those of the stream, of the host, and of what the operation waits for."""
        clock = np.maximum(known, stream.clock)
        for edge in op.after:
            self._join(clock, edge.source)
        host = self.actor(_host_column(op.by))
        clock[host] = max(clock[host], op.host)
        stream.known, stream.clock = known, clock
        stream.history.append(op.index, clock)

    def _known(self, name: str, at: int) -> Clock:
        """Return what a host knew when its clock was `at`."""
        host = self._host(name)
        if host.indices[-1] <= at:
            return host.clocks[-1]
        place = bisect_right(host.indices, at) - 1
        assert place >= 0, (
            f"what {_host_column(name)} knew at its clock {at} is more than {self._clocks_kept} host "
            "synchronisations old; raise CLOCKS_KEPT"
        )
        return host.clocks[place]

    def _join(self, clock: Clock, source: OpRef) -> None:
        """Let `clock` cover an operation and everything that happened before it."""
        name, index = source
        column = self.actor(name)
        if clock[column] >= index:
            return  # covered already, and with it all that it covers
        stream = self._streams.get(name)
        assert stream is not None and index <= stream.last, (
            f"somebody waited for operation {index} of stream {name}, which was never seen to end"
        )
        place = bisect_right(stream.history.indices, index) - 1
        assert place >= 0, (
            f"somebody waited for operation {index} of stream {name}, {stream.last - index} operations "
            f"back; only {self._clocks_kept} clocks are kept for sure: raise CLOCKS_KEPT"
        )
        np.maximum(clock, stream.history.clocks[place], out=clock)
        clock[column] = index  # a clock may serve several operations, and the column may be a later one's


def _host_column(name: str) -> str:
    return f"host {name}" if name else "host"
