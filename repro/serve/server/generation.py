"""One request from body to last byte: read, submit, stream or collect, abort when the client leaves."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from repro.serve.server.answers import Job
from repro.serve.server.errors import EngineFailedError, error_reply, json_response
from repro.serve.server.intake import read_body
from repro.serve.server.service import Service

DONE = b"data: [DONE]\n\n"

ReadJob = Callable[[Service, bytes, Mapping[str, str]], Job]


class GenerationRoute:
    """The ASGI endpoint of one generation API: `read_job` turns a body into a `Job`, which `Service` runs."""

    def __init__(self, service: Service, read_job: ReadJob) -> None:
        self._service = service
        self._read_job = read_job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Errors before the first token are raised: the application answers them with a status."""
        request = Request(scope, receive)
        try:
            body = await read_body(request, self._service.limits.body_bytes)
        except ClientDisconnect:
            return
        job = self._read_job(self._service, body, request.headers)
        answer = self._stream(job, send) if job.stream else self._whole(job, scope, receive, send)
        await while_connected(receive, answer)

    async def _whole(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        submitted_s = self._service.clock()
        async with aclosing(self._service.updates(job.request)) as updates:
            collected = [update async for update in updates]
        reply = job.answer.whole(collected, self._service.clock() - submitted_s)
        await json_response(reply, headers={"x-request-id": job.request.id})(scope, receive, send)

    async def _stream(self, job: Job, send: Send) -> None:
        """Send each update as it comes. The status is sent with the first update: the engine may refuse before it."""
        stream = EventStream(send, job.request.id)
        submitted_s = self._service.clock()
        try:
            async with aclosing(self._service.updates(job.request)) as updates:
                async for update in updates:
                    await stream.start()
                    for chunk in job.answer.chunks(update, self._service.clock() - submitted_s):
                        await stream.send(event(chunk))
            await stream.send(DONE, last=True)
        except Exception as error:
            if not stream.started:
                raise
            await stream.send(event(error_reply(error)), last=True)  # status 200 is sent already
            if not isinstance(error, EngineFailedError):
                raise


class EventStream:
    """A response body of events. Each `send` is a chunk of its own: nothing is buffered here."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False

    async def start(self) -> None:
        """Send status 200 and the headers, once; later errors go into the stream."""
        if self.started:
            return
        fields = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # without it nginx collects events before it passes them on
            "x-request-id": self._request_id,
        }
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
        self.started = True

    async def send(self, chunk: bytes, *, last: bool = False) -> None:
        """Send one chunk, the last closes the body; waits while the client reads too slowly."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})


def event(body: msgspec.Struct) -> bytes:
    """Return `body` as one server-sent event; JSON has no raw line breaks, so one data line holds it."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it as soon as the client disconnects.

    The request body must have been read. Two plain tasks instead of a task group: groups cancel
    their members in the order of a set, and the order must not depend on addresses.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnect(receive))
    watch.add_done_callback(lambda _: task.cancel())
    try:
        await task
    except asyncio.CancelledError:
        if not watch.done():  # we were cancelled ourselves: the server is going down
            raise
    finally:
        watch.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
