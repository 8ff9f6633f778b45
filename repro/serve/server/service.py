"""What the routes share: the engine, the tokenizer, the clock, and which requests are in flight."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import cast

from repro.serve.server.errors import ApiError, EngineFailedError
from repro.serve.server.intake import client_id
from repro.serve.server.metrics import Latency, RequestTimer
from repro.serve.server.vocabulary import Vocabulary
from repro.serve.types import GenerateRequest, ServingEngine, Update


@dataclass(frozen=True)
class Limits:
    """Bounds of what the server takes at once."""

    body_bytes: int = 16 * 2**20  # a chat of 128K tokens is below 1 MiB
    requests_in_flight: int = 4096  # connections and prompts held; the engine bounds its own queue
    grace_s: float = 5.0  # after Ctrl-C, for requests in flight to end


DEFAULT_LIMITS = Limits()


class InFlight:
    """The ids of the requests in flight, in order of arrival; no two are alike."""

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._ids: dict[str, None] = {}
        self._counted = 0

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids, oldest first."""
        return tuple(self._ids)

    def next_id(self, prefix: str) -> str:
        """Return a new id from the counter."""
        self._counted += 1
        return f"{prefix}-{self._counted}"

    @contextmanager
    def hold(self, request_id: str) -> Iterator[None]:
        """Hold an id while its request runs. Raises ApiError for one in use, or when there are too many."""
        if request_id in self._ids:
            # 400 and not 409, which the OpenAI client would answer with retries.
            raise ApiError(f"a request with id {request_id} is in flight", code="duplicate_request_id")
        if len(self._ids) >= self._requests_max:
            text = f"{self._requests_max} requests are in flight, the most this server takes; try again later"
            raise ApiError(text, status=503, code="overloaded")
        self._ids[request_id] = None
        try:
            yield
        finally:
            del self._ids[request_id]


@dataclass(frozen=True)
class Service:
    """The engine behind the routes. `clock` returns seconds; `seed` seeds requests without their own."""

    engine: ServingEngine
    vocabulary: Vocabulary
    clock: Callable[[], float]
    is_alive: Callable[[], bool]
    seed: int
    limits: Limits
    in_flight: InFlight
    started_s: float
    latency: Latency = field(default_factory=Latency)

    def request_id(self, rid: str | None, headers: Mapping[str, str], prefix: str) -> str:
        """Return the id of a new request: the client's, or the counter's next."""
        return client_id(rid, headers) or self.in_flight.next_id(prefix)

    def check_model(self, name: str) -> None:
        """Raise ApiError 404 unless `name` is the served model, or "default"."""
        if name not in (self.engine.served.name, "default"):
            raise ApiError(
                f"the model {name!r} does not exist; this server has {self.engine.served.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def updates(self, request: GenerateRequest) -> AsyncGenerator[Update, None]:
        """Submit a request and yield its updates up to the last; closing it aborts the request."""
        timer = RequestTimer(self.latency, self.clock())
        finished = False
        with self.in_flight.hold(request.id):
            stream = cast(AsyncGenerator[Update, None], self.engine.generate(request))
            async with aclosing(stream):
                async for update in stream:
                    finished = update.finish is not None
                    timer.update(self.clock(), len(update.tokens), finished)
                    yield update
        if not finished:
            raise EngineFailedError(f"the engine ended request {request.id} without saying why")
