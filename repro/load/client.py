"""Asks a server for one streamed answer and measures it; OpenAI's API or SGLang's /generate.

    Ask -> ChatClient.ask -> httpx -> transport -> _Stream (bytes -> events -> pieces) -> Watch
                                                                                            |
    Answer <----------------------------- grows piece by piece <----------------------------+

Nothing is raised for what a server does wrong: the answer says it, beside the text that had arrived.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import httpx
import msgspec

from repro.base.errors import TargetError, UsageError
from repro.load.answer import Answer, ErrorKind
from repro.load.exchange import Close, Pause
from repro.load.lag import Histogram, LagMeter, clock_of
from repro.load.secret import API_KEY_VARIABLE, api_key, without_key
from repro.load.sse import EventParser, MalformedStreamError
from repro.load.transport import PushTransport
from repro.load.wire import PATHS, Api, Piece, ServerSaidError, message_of, reader_of

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0  # a prefill of 200K tokens behind a full queue takes minutes
PIECES_PER_TOKEN_MAX = 4  # a server that cuts tokens into characters still passes
PIECES_SPARE = 256
UNAUTHORISED = (401, 403)
ERROR_BODY_BYTES_MAX = 64 * 1024
GREEDY: Mapping[str, Any] = MappingProxyType({"temperature": 0.0})
NOTHING: Mapping[str, Any] = MappingProxyType({})

Watch = Callable[[Answer, Piece], Close | Pause | None]


class Ask(msgspec.Struct, frozen=True):
    """One request: encoded JSON messages (reused from turn to turn), encoded tools, and limits."""

    request: str
    messages: Sequence[bytes]
    max_tokens: int
    tools: bytes = b""
    abort_after_s: float | None = None  # give up this long after sending, as an impatient user does


class ServerFacts(msgspec.Struct, frozen=True):
    """What /v1/models says of the first model served."""

    model: str
    context_tokens_max: int | None


class ChatClient:
    """Asks one server. `ttft`, `gaps` and `lag` collect over all its answers.

    `extra` is merged into every body, e.g. SGLang's {"return_cached_tokens_details": True}.
    """

    def __init__(self, http: httpx.AsyncClient, *, api: Api = "chat", extra: Mapping[str, Any] = NOTHING) -> None:
        self.http = http
        self.model = "default"  # servers of one model take any name
        self.ttft = Histogram()
        self.gaps = Histogram()
        self.lag = LagMeter()
        self.api: Api = api
        self._extra = extra

    async def ask(self, ask: Ask, watch: Watch, answer: Answer) -> None:
        """Fill `answer`, to its end or as far as it comes; `watch` sees each piece as it arrives."""
        clock = clock_of(asyncio.get_running_loop())
        answer.sent_s = clock()
        stream = _Stream(self, answer, watch, clock, PIECES_PER_TOKEN_MAX * ask.max_tokens + PIECES_SPARE)
        try:
            async with asyncio.timeout(ask.abort_after_s):
                await self._exchange(self._request(ask, stream), stream)
        except TimeoutError:
            answer.finish = "abort"
        except (httpx.TransportError, MalformedStreamError, ServerSaidError) as error:
            answer.fail(*error_of(error))
        finally:
            answer.finished_s = clock()

    async def facts(self) -> ServerFacts:
        """Return the served model. Raises TargetError with what went wrong and what to try."""
        where = f"{self.http.base_url}v1/models"
        try:
            response = await self.http.get("/v1/models")
            response.raise_for_status()
            cards = response.json()["data"]
            limit = cards[0].get("max_model_len")
            return ServerFacts(str(cards[0]["id"]), limit if isinstance(limit, int) else None)
        except httpx.HTTPStatusError as error:
            status, text = error.response.status_code, message_of(json_or_text(error.response.content))
            hint = f"; set {API_KEY_VARIABLE} to a key that it takes" if status in UNAUTHORISED else ""
            raise TargetError(f"{where} answered {status}: {text}{hint}") from error
        except httpx.TransportError as error:
            raise TargetError(f"{where}: {error_of(error)[1]}") from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise TargetError(f"{where}: no list of models ({error}); is this an OpenAI-compatible server?") from error

    def _request(self, ask: Ask, stream: "_Stream") -> httpx.Request:
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",  # a compressed stream arrives in blocks, not in tokens
            "X-Request-Id": ask.request,
        }
        return self.http.build_request(
            "POST", PATHS[self.api], content=self.body(ask), headers=headers, extensions={"sink": stream.sink}
        )

    def body(self, ask: Ask, *, stream: bool = True, extra: Mapping[str, Any] = NOTHING) -> bytes:
        """Return the body of a request; `extra` is merged in, over what every body has."""
        added = {**self._extra, **extra}
        if self.api == "generate":
            sampling = {"max_new_tokens": ask.max_tokens, **GREEDY}
            prompt = {"text": plain_prompt(ask.messages), "sampling_params": sampling}
            return msgspec.json.encode({**prompt, "stream": stream, "rid": ask.request, **added})
        options = {"stream_options": {"include_usage": True}} if stream else {}
        common: dict[str, Any] = {
            "model": self.model,
            "max_tokens": ask.max_tokens,
            "stream": stream,
            **options,
            **GREEDY,
            **added,
        }
        if self.api == "completions":
            return msgspec.json.encode({**common, "prompt": plain_prompt(ask.messages)})
        # The history is encoded once and joined here: encoding it anew each turn costs 90 times as much.
        tools = b',"tools":' + ask.tools if ask.tools else b""
        return b'%b,"messages":[%b]%b}' % (msgspec.json.encode(common)[:-1], b",".join(ask.messages), tools)

    async def _exchange(self, request: httpx.Request, stream: "_Stream") -> None:
        response = await self.http.send(request, stream=True)
        try:
            if response.status_code != 200:
                stream.answer.fail(*await _refusal(response))
                return
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                kind = response.headers.get("content-type", "nothing")
                raise MalformedStreamError(f"expected text/event-stream, the server sent {kind}")
            async for chunk in response.aiter_raw():  # empty on a transport that pushes
                wanted = stream.sink(chunk)
                if isinstance(wanted, Close):
                    return
                if wanted is not None:
                    await asyncio.sleep(wanted.seconds)
            stream.end()
        finally:
            await response.aclose()


class _Stream:
    """Turns the chunks of one answer into pieces; `sink` runs in the event loop's callback."""

    __slots__ = (
        "_client", "_clock", "_closed", "_done", "_events", "_pieces_max", "_reader", "_watch", "answer",
    )  # fmt: skip

    def __init__(
        self, client: ChatClient, answer: Answer, watch: Watch, clock: Callable[[], float], pieces_max: int
    ) -> None:
        self.answer = answer
        self._client = client
        self._watch = watch
        self._clock = clock
        self._pieces_max = pieces_max
        self._events = EventParser()
        self._reader = reader_of(client.api)
        self._closed = False
        self._done = False

    def sink(self, chunk: bytes) -> Close | Pause | None:
        """Take a chunk of the body; the answer is what the watch wants."""
        now_s = self._clock()
        wanted: Close | Pause | None = None
        for data in self._events.feed(chunk):
            asked = self._event(data, now_s)
            if isinstance(asked, Close):
                self._closed = True
                return asked
            wanted = asked or wanted
        return wanted

    def end(self) -> None:
        """The body has ended without an error. Raises MalformedStreamError when the answer has not."""
        if self._closed:
            return
        for data in self._events.end():
            self._event(data, self._clock())
        if not self._done and not self.answer.finish:
            raise httpx.ReadError("the stream ended without a finish_reason")
        self.answer.finish = self.answer.finish or "stop"

    def _event(self, data: bytes, now_s: float) -> Close | Pause | None:
        if data == b"[DONE]":
            self._done = True
            return None
        piece = self._reader.read(data)
        answer = self.answer
        if answer.grow(piece):
            if answer.first_s < 0:
                answer.first_s = now_s
                self._client.ttft.add(now_s - answer.sent_s)
            else:
                self._client.gaps.add(now_s - answer.last_s)
            answer.last_s = now_s
            if answer.pieces > self._pieces_max:
                raise MalformedStreamError(f"{answer.pieces} pieces and no end, far more than max_tokens")
        return self._watch(answer, piece)


def open_client(
    url: str,
    *,
    api: Api = "chat",
    extra: Mapping[str, Any] = NOTHING,
    transport: httpx.AsyncBaseTransport | None = None,
    read_timeout_s: float | None = READ_TIMEOUT_S,
) -> ChatClient:
    """Return a client for the server at `url`, with the API key of OPENAI_API_KEY when that is set.

    A trailing /v1 is accepted, since other tools want it. Raises UsageError for what is no URL.
    """
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is no URL ({error}); expected something like http://127.0.0.1:8000") from error
    if base.scheme not in ("http", "https") or not base.host:
        raise UsageError(f"{url!r} is no http URL; expected something like http://127.0.0.1:8000")
    if base.userinfo or base.query:
        raise UsageError(
            f"{base.scheme}://{base.host}: the URL holds a user, a password or a query, which would be kept in the "
            f"record; give it without them, and a key in {API_KEY_VARIABLE}"
        )
    key = api_key()
    http = httpx.AsyncClient(
        base_url=base.copy_with(raw_path=base.raw_path.rstrip(b"/").removesuffix(b"/v1") + b"/"),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        transport=transport or PushTransport(),
        timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S),
    )
    return ChatClient(http, api=api, extra=extra)


def plain_prompt(messages: Sequence[bytes]) -> str:
    """Return encoded chat messages as plain text, for APIs that take no messages."""
    decoded = [msgspec.json.decode(message) for message in messages]
    return "".join(f"<|{each['role']}|>\n{each.get('content', '')}\n" for each in decoded) + "<|assistant|>\n"


async def _refusal(response: httpx.Response) -> tuple[ErrorKind, str]:
    """Return kind and text of an error status, in the server's own words."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > ERROR_BODY_BYTES_MAX:
            break
    error = json_or_text(body)
    text = f"the server answered {response.status_code}: {message_of(error)}{_code_in(error)}"
    if response.status_code in (429, 503):
        return "busy", text
    return ("server" if response.status_code >= 500 else "rejected"), text


def _code_in(error: Any) -> str:
    """Return OpenAI's code of an error, such as context_length_exceeded: wordings differ, it does not."""
    inner = error.get("error") if isinstance(error, dict) else None
    code = inner.get("code") if isinstance(inner, dict) else None
    return without_key(f" ({code})") if isinstance(code, str) and code else ""


def json_or_text(body: bytes) -> Any:
    """Return the JSON of a reply, or what of it can be read."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return without_key(body[:ERROR_BODY_BYTES_MAX].decode("utf-8", "backslashreplace").strip()) or "(no text)"


def error_of(error: Exception) -> tuple[ErrorKind, str]:
    """Return kind and text of what went wrong between us and a server."""
    if isinstance(error, MalformedStreamError):
        return "malformed", str(error)
    if isinstance(error, ServerSaidError):
        return "server", f"the server reported inside its stream: {error}"
    if isinstance(error, httpx.PoolTimeout):
        return "client", str(error)
    if isinstance(error, httpx.TimeoutException):
        return "timeout", str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError):
        return "refused", f"no connection: {error}. Is the server running there?"
    return "died", without_key(str(error)) or type(error).__name__
