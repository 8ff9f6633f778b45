"""`torch.cuda` as SGLang's cache controller uses it, for a server on a CPU: each stream is a thread with a queue.

The default stream is the scheduler's own thread, so a wait on it blocks there, as a GPU's compute would.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue


class Event:
    """A point in a stream; before it is recorded, waiting for it returns at once."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._reached.set()

    def record(self, stream: "Stream | None" = None) -> None:
        """Move this event behind everything put on the stream so far."""
        self._reached = reached = threading.Event()
        (stream or current_stream()).put(reached.set)

    def wait(self, stream: "Stream | None" = None) -> None:
        """Hold what is put on the stream from now on until the latest record is reached."""
        (stream or current_stream()).wait_event(self)

    def holding(self) -> Callable[[], object]:
        """Return a function that blocks until the record that is the latest one now is reached."""
        return self._reached.wait

    def query(self) -> bool:
        """Return whether the latest record has been reached."""
        return self._reached.is_set()

    def synchronize(self) -> None:
        """Wait until the latest record has been reached."""
        self._reached.wait()


class Stream:
    """A thread that does what is put on it, in order."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, work: Callable[[], object]) -> None:
        """Append work."""
        self._queue.put(work)

    def wait_event(self, event: Event) -> None:
        """Hold what is put here from now on until the event's latest record is reached."""
        self.put(event.holding())

    def synchronize(self) -> None:
        """Wait until everything put here so far is done."""
        event = Event()
        event.record(self)
        event.synchronize()

    def _run(self) -> None:
        while True:
            self._queue.get()()


class HostStream(Stream):
    """The default stream: the thread that puts work on it does it at once."""

    def __init__(self) -> None:
        pass

    def put(self, work: Callable[[], object]) -> None:
        """Do the work."""
        work()


_default = HostStream()
_current = threading.local()


def current_stream() -> Stream:
    """Return the stream that this thread puts work on."""
    stream: Stream = getattr(_current, "stream", _default)
    return stream


@contextmanager
def stream(inside: Stream) -> Iterator[None]:
    """Let this thread put work on a stream inside."""
    outside, _current.stream = current_stream(), inside
    try:
        yield
    finally:
        _current.stream = outside
