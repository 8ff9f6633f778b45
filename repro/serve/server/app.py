"""The HTTP application: OpenAI's chat and text completions, SGLang's /generate, and operations.

It runs on any asyncio loop, in virtual time too: no threads, no wall clock, no random ids.
"""

from collections.abc import Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tokenizers import Tokenizer

from repro.serve.server.chat_route import read_chat
from repro.serve.server.completion_route import read_completion
from repro.serve.server.errors import ApiError, EngineFailedError, json_response, on_error
from repro.serve.server.generation import GenerationRoute, ReadJob
from repro.serve.server.intake import decode, read_body
from repro.serve.server.metrics import CONTENT_TYPE, prometheus_text
from repro.serve.server.native_route import read_native
from repro.serve.server.replies import ModelCard, ModelList, Tokenized
from repro.serve.server.schema import abort_decoder, tokenize_decoder
from repro.serve.server.service import DEFAULT_LIMITS, InFlight, Limits, Service
from repro.serve.server.vocabulary import vocabulary_of
from repro.serve.types import RejectedError, ServingEngine

GENERATION_ROUTES: dict[str, ReadJob] = {
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completion,
    "/generate": read_native,
}


def create_app(
    engine: ServingEngine,
    tokenizer: Tokenizer,
    *,
    clock: Callable[[], float],
    seed: int = 0,
    is_alive: Callable[[], bool] = lambda: True,
    limits: Limits = DEFAULT_LIMITS,
) -> Starlette:
    """Return the application in front of `engine`.

    `clock` returns seconds (Unix time under `repro serve`, virtual time in a simulation); `seed` seeds
    sampled requests that bring no seed; `is_alive` says whether the engine still works.
    """
    service = Service(
        engine,
        vocabulary_of(tokenizer),
        clock,
        is_alive,
        seed,
        limits,
        InFlight(limits.requests_in_flight),
        started_s=clock(),
    )
    operations = Operations(service)
    routes = [
        Route(path, GenerationRoute(service, read_job), methods=["POST"])
        for path, read_job in GENERATION_ROUTES.items()
    ]
    errors = (ApiError, RejectedError, EngineFailedError, HTTPException, Exception)
    return Starlette(routes=routes + operations.routes(), exception_handlers=dict.fromkeys(errors, on_error))


class Operations:
    """The routes that look after the server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._engine = service.engine

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/server_info", self.server_info),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/v1/tokenize", self.tokenize, methods=["POST"]),
            Route("/flush_cache", self.flush_cache, methods=["GET", "POST"]),
            Route("/abort_request", self.abort_request, methods=["POST"]),
        ]

    async def health(self, request: Request) -> Response:
        """Answer 200 while the engine works, in the middle of a step too, else 503."""
        alive = self._service.is_alive()
        return json_response({"status": "ok" if alive else "the engine has failed"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Answer counters, gauges and latencies as Prometheus reads them."""
        text = prometheus_text(self._engine.stats(), self._service.latency, self._engine.served.name)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def server_info(self, request: Request) -> Response:
        """Answer the engine's configuration and its counters."""
        served = self._engine.served
        return json_response(
            {
                **served.description,
                "model": served.name,
                "context_length": served.context_tokens,
                "uptime_s": self._service.clock() - self._service.started_s,
                "requests_in_flight": len(self._service.in_flight.ids),
                "stats": msgspec.to_builtins(self._engine.stats()),
            }
        )

    async def models(self, request: Request) -> Response:
        """Answer the one model there is."""
        return json_response(ModelList([self._card()]))

    async def model(self, request: Request) -> Response:
        """Answer the named model, or 404."""
        self._service.check_model(request.path_params["name"])
        return json_response(self._card())

    async def tokenize(self, request: Request) -> Response:
        """Answer the token ids of raw prompts, as /generate would split them."""
        body = decode(tokenize_decoder, await read_body(request, self._service.limits.body_bytes))
        self._service.check_model(body.model)
        encode, most = self._service.vocabulary.encode, self._engine.served.context_tokens
        if isinstance(body.prompt, str):
            tokens = encode(body.prompt)
            return json_response(Tokenized(tokens, len(tokens), most))
        each = [encode(prompt) for prompt in body.prompt]
        return json_response(Tokenized(each, list(map(len, each)), most))

    async def flush_cache(self, request: Request) -> Response:
        """Drop all cached prefixes; 400 while requests run, as SGLang answers."""
        if not await self._engine.flush_cache():
            raise ApiError("the cache is in use: requests are running or waiting", code="requests_running")
        return json_response({"success": True, "message": "cache flushed"})

    async def abort_request(self, request: Request) -> Response:
        """Abort one request by its id, or all; an unknown id is no error, it may have just finished."""
        body = decode(abort_decoder, await read_body(request, self._service.limits.body_bytes))
        if not body.rid and not body.abort_all:
            raise ApiError("send the rid of the request to abort, or abort_all: true", param="rid")
        for request_id in self._service.in_flight.ids if body.abort_all else (body.rid,):
            self._engine.abort(request_id)
        return json_response({"success": True})

    def _card(self) -> ModelCard:
        started = int(self._service.started_s)
        return ModelCard(self._engine.served.name, started, self._engine.served.context_tokens)
