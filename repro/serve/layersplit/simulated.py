"""Collectives between simulated ranks: a mailbox for each call, and flags that receivers' streams wait for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from repro.base.probe import OpRef
from repro.serve.device.base import Commit, Recorder, Stream
from repro.serve.device.streams import SimStream
from repro.serve.layersplit.collective import CollectiveError, Exchange, Payload

RECEIVE_US = 1.0  # the sender's operation takes the time of the transfer


class Call(NamedTuple):
    """What a rank called, for comparison with the others."""

    kind: str
    name: str
    layer: int
    step: int
    root: int  # -1: none

    def __str__(self) -> str:
        root = f" from rank {self.root}" if self.root >= 0 else ""
        return f"{self.kind} of {self.name}, layer {self.layer}, step {self.step}{root}"


class Sent(NamedTuple):
    """What a rank sent, and the operation that did."""

    payload: Payload
    by: OpRef


@dataclass(eq=False)
class Meeting:
    """One call of all ranks: which have enqueued it, sent, and done their part."""

    number: int
    call: Call
    came: dict[int, None] = field(default_factory=dict)  # ranks that have enqueued it
    sent: dict[int, Sent] = field(default_factory=dict)
    left: int = 0  # ranks that have done their part


@dataclass(frozen=True)
class Arrival:
    """Open once all of these ranks have sent (`streams.Gate`)."""

    meeting: Meeting
    senders: tuple[int, ...]

    @property
    def reached(self) -> bool:
        return all(sender in self.meeting.sent for sender in self.senders)


class SimGroup:
    """The communicator that the ranks share."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._meetings: dict[int, Meeting] = {}  # ordered by the calls; a meeting that all ranks have left is dropped

    def join(self, number: int, rank: int, call: Call) -> Meeting:
        """Return the meeting of a rank's nth call. Raises CollectiveError when another rank's is a different one."""
        meeting = self._meetings.setdefault(number, Meeting(number, call))
        if meeting.call != call:
            other = next(iter(meeting.came))
            raise CollectiveError(
                f"call {number} of the communicator: rank {rank} enqueued a {call}, rank {other} a {meeting.call}; "
                "real ranks would hang here: every rank has to enqueue the same calls in the same order"
            )
        meeting.came[rank] = None
        return meeting

    def leave(self, meeting: Meeting) -> None:
        """Note that one more rank has done its part."""
        meeting.left += 1
        if meeting.left == self.ranks:
            del self._meetings[meeting.number]

    def missing(self) -> str:
        """Return which ranks have not enqueued the oldest open call, "" for none."""
        for meeting in self._meetings.values():
            absent = [str(rank) for rank in range(self.ranks) if rank not in meeting.came]
            if absent:
                return f"rank {', '.join(absent)} never came to the {meeting.call}"
        return ""


class SimCollective:
    """One rank's end (`Collective`)."""

    def __init__(self, group: SimGroup, rank: int) -> None:
        self.rank = rank
        self.ranks = group.ranks
        self.enabled = False
        self._group = group
        self._calls = 0

    def broadcast(self, stream: Stream, exchange: Exchange, root: int) -> None:
        """Enqueue the root's read, or a write behind it."""
        if not self.enabled or self.ranks == 1:
            return
        meeting = self._join("broadcast", exchange, root)
        if self.rank == root:
            self._send(stream, "split.broadcast_" + exchange.name, exchange, meeting, leaves=True)
        else:
            self._receive(stream, "split.receive_" + exchange.name, exchange, meeting, (root,))

    def all_gather(self, stream: Stream, exchange: Exchange) -> None:
        """Enqueue a read, and a write behind all ranks' reads."""
        meeting = self._join("all-gather", exchange, -1)
        self._send(stream, "split.gather_" + exchange.name, exchange, meeting, leaves=False)
        self._receive(stream, "split.gathered_" + exchange.name, exchange, meeting, tuple(range(self.ranks)))

    def missing(self) -> str:
        """Return which ranks have not enqueued the oldest open call, "" for none."""
        return self._group.missing()

    def _join(self, kind: str, exchange: Exchange, root: int) -> Meeting:
        self._calls += 1
        call = Call(kind, exchange.name, exchange.layer, exchange.step, root)
        return self._group.join(self._calls, self.rank, call)

    def _send(self, stream: Stream, name: str, exchange: Exchange, meeting: Meeting, *, leaves: bool) -> None:
        def body(recorder: Recorder) -> Commit:
            sent = Sent(exchange.read(recorder), recorder.ref)

            def commit() -> None:
                meeting.sent[self.rank] = sent
                if leaves:
                    self._group.leave(meeting)

            return commit

        stream.enqueue(
            name, body, duration_us=exchange.duration_us, layer=exchange.layer, step=exchange.step,
            requests=exchange.requests, declared=exchange.reads,
        )  # fmt: skip

    def _receive(self, stream: Stream, name: str, exchange: Exchange, meeting: Meeting, senders: Sequence[int]) -> None:
        assert isinstance(stream, SimStream), f"{stream.name} is no simulated stream"
        stream.hold(Arrival(meeting, tuple(senders)))

        def body(recorder: Recorder) -> Commit:
            arrived = [meeting.sent[sender] for sender in senders]
            for sent in arrived:
                if sent.by[0] != stream.name:
                    recorder.follows(sent.by, f"{meeting.call.kind}: what was sent has arrived")
            write = exchange.write(recorder, [sent.payload for sent in arrived])

            def commit() -> None:
                if write is not None:
                    write()
                self._group.leave(meeting)

            return commit

        stream.enqueue(
            name, body, duration_us=RECEIVE_US, layer=exchange.layer, step=exchange.step,
            requests=exchange.requests, declared=exchange.writes,
        )  # fmt: skip
