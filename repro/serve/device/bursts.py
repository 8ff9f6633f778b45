"""Bursts: what one stream runs while no other stream can run anything, simulated in one go.

A step enqueues some thirty operations at once. While every other stream is empty, or waits for the end of them all,
they run in the same order under every schedule, so the device does not stop between them:

    start ── times of all operations are computed ── the last one ends ── bodies run in order ── one `Burst` event
                      └─ another stream may run something ── cut: those that have ended by now are carried out,
                         one runs, the rest is the head of the queue again

Bodies run later than they would one by one, and nobody can tell: only what runs on a stream changes what they read,
and no event is recorded within a burst, so that no host learns of its middle.
"""

from collections import deque
from collections.abc import Sequence

from repro.base.probe import Burst, Op, Part
from repro.serve.device.streams import Launch, Marker, Operation, SimStream


class RunningBurst:
    """Operations that began at `now_us`; each starts when the one before has ended and the host has enqueued it."""

    def __init__(self, head: Operation, now_us: float) -> None:
        self.operations = [head]
        declared = list(head.launch.declared)
        while head.rest:
            head = head.next()
            declared += head.launch.declared
            self.operations.append(head)
        free_us = now_us
        for operation in self.operations:
            operation.start_us = max(free_us, operation.enqueued_us)
            free_us = operation.end_us = operation.start_us + operation.launch.duration_us
        self.end_us = free_us
        # Schedules choose when it ends by all that it writes.
        self.launch: Launch = head.launch._replace(declared=tuple(each for each in declared if each.write))

    def end_by(self, now_us: float) -> None:
        """Let all of it have ended by `now_us`: a schedule may take its end early."""
        for operation in self.operations:
            operation.start_us = min(operation.start_us, now_us)
            operation.end_us = min(operation.end_us, now_us)

    def cut(self, now_us: float) -> tuple[list[Operation], Operation | None, Operation | None]:
        """Return the operations that have ended, the one that runs, and the rest as one that is yet to start."""
        ended = [each for each in self.operations if each.end_us <= now_us]
        others = self.operations[len(ended) :]
        running = others.pop(0) if others and others[0].start_us <= now_us else None
        if not others:
            return ended, running, None
        head = others[0]
        head.rest = deque((each.launch, each.enqueued_us) for each in others[1:])
        head.closed = others[-1].closed
        return ended, running, head


def is_quiet(stream: SimStream) -> bool:
    """Return whether a stream runs nothing and can't start anything before another stream's burst has ended."""
    if stream.running is not None:
        return False
    if not stream.queue:
        return True
    blockers = stream.queue[0].blockers
    return bool(blockers) and all(isinstance(each, Marker) for each in blockers)  # a gate may open at any end


def event_of(operations: Sequence[Operation]) -> Burst:
    """Return what is told of operations of one burst."""
    first = operations[0]
    launch, (stream, index) = first.launch, first.ref
    return Burst(
        stream,
        index,
        launch.step,
        first.host,
        tuple([each.launch.site for each in operations]),
        tuple([_part(each) for each in operations]),
        first.after,
        launch.requests,
        first.by,
    )


def _part(operation: Operation) -> Part:
    launch = operation.launch
    times = (operation.enqueued_us, operation.start_us, operation.end_us)
    return Part(launch.name, launch.layer, *times, tuple(operation.accesses))


def operation_event(operation: Operation) -> Op:
    """Return what is told of an operation that has ended."""
    launch = operation.launch
    stream, index = operation.ref
    return Op(
        stream=stream,
        index=index,
        name=launch.name,
        layer=launch.layer,
        step=launch.step,
        site=launch.site,
        host=operation.host,
        enqueued_us=operation.enqueued_us,
        start_us=operation.start_us,
        end_us=operation.end_us,
        after=operation.after,
        accesses=tuple(operation.accesses),
        requests=launch.requests,
        by=operation.by,
    )
