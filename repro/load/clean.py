"""Asks a server about its own answers, one at a time after the load, past everything that the load has cached.

    answer of the load --+--> the same prompt again: what does the server answer undisturbed?
                         +--> prompt and answer as one prompt: how likely is each token of the answer?

Past the cache means: it was dropped (POST /flush_cache, SGLang and ours, idle servers only), or the request
shares prefixes with nobody (`cache_salt` on vLLM and SGLang, `extra_key` on SGLang's /generate). The server's
count of cached prompt tokens proves it. Tokens are compared by their ids, else by their texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from repro.load.again import Asked, flush_cache
from repro.load.answer import Answer
from repro.load.client import ChatClient, error_of, json_or_text, plain_prompt
from repro.load.replies import Key, Place, Reply, Scores, read_prompt_ids, read_reply, read_scores
from repro.load.sse import MalformedStreamError
from repro.load.wire import DECODE_ERRORS, PATHS, Api, message_of
from repro.record.checks import Check
from repro.record.requests import WHOLE

TOPS = 20  # alternatives asked for at each place of a rerun: the most that OpenAI's API gives
SERVER_ERROR = 500
REPLY_BYTES_MAX = 256 * 2**20  # a million places with their log-probabilities take about a hundred MiB
LOST_AFTER_FAILURES = 3  # checks in a row that got no connection
PROMPT_NAMED_MAX_TOKENS = 8192  # the logits of so many places at once are all that a server should be asked for
MUTE_AFTER_CHECKS = 3  # after so many first checks without any figure no more are made
ONE_TOKEN = {"temperature": 0.0, "max_new_tokens": 1}
NO_LOGPROBS = "the target tells no log-probabilities with its answers"
NO_IDS = (
    "the target tells no token ids, without which answers cannot be sent back; SGLang tells them on /generate "
    "(--api generate), vLLM from 0.10.2 on with return_token_ids"
)

# What the answers of the load must bring so that they can be checked afterwards.
ASKED_FOR: Mapping[Api, dict[str, Any]] = {
    "chat": {"logprobs": True, "return_token_ids": True},
    "completions": {"logprobs": 1, "return_token_ids": True},
    "generate": {"return_logprob": True},
}
_TOPS_ASKED_FOR: Mapping[Api, dict[str, Any]] = {
    "chat": {"top_logprobs": TOPS},
    "completions": {"logprobs": 5},  # the most that servers give there by default
    "generate": {"top_logprobs_num": TOPS},
}


@dataclass
class Checks:
    """The results of checking, filled one by one: an interrupted check leaves those made so far."""

    done: list[Check] = field(default_factory=list)
    wanted: int = 0
    tokens: int = 0  # sent and received, prompts included
    over_budget: bool = False
    lost: str = ""  # the server went away: the last error


class _RefusedError(Exception):
    """The server does not do what a check needs; the text says so."""


class _BrokenError(Exception):
    """The server answers a request with an error of its own that it has answered before."""


async def check_answers(
    client: ChatClient,
    asked: Sequence[Asked],
    checks: Checks,
    *,
    tokens_max: int,
    done: Callable[[int, int], None] = lambda number, total: None,
) -> None:
    """Check answers in this order, alone, for at most `tokens_max` tokens; may be cancelled at any point."""
    checks.wanted = len(asked)
    checker = _Checker(client, checks)
    failures, last = 0, ""
    for number, each in enumerate(asked, 1):
        if checks.tokens + checker.cost_tokens(each) > tokens_max:
            checks.over_budget = True
            return
        try:
            checks.done.append(await checker.check(each))
            failures = 0
            if number == MUTE_AFTER_CHECKS and all(check.mute for check in checks.done):
                return
        except (httpx.TransportError, _BrokenError) as error:
            failures += 1
            last = str(error) if isinstance(error, _BrokenError) else error_of(error)[1]
            if failures >= LOST_AFTER_FAILURES:
                break
        done(number, len(asked))
    if failures:
        checks.lost = f"while its answers were checked: {last}"


class _Checker:
    """Asks; remembers how this server's cache is passed."""

    def __init__(self, client: ChatClient, checks: Checks) -> None:
        self._client = client
        self._checks = checks
        self._flushes = True  # until the server refuses
        self._tokenizes = True  # until /tokenize fails
        self._salted = 0

    def cost_tokens(self, asked: Asked) -> int:
        """Return how many tokens a check takes at most: the rerun, prompt and answer once more, a prompt's naming."""
        counts = asked.answer.counts
        prompt = counts.prompt_tokens if counts is not None else len(b"".join(asked.ask.messages)) // 4
        named = self._client.api == "generate" and prompt <= PROMPT_NAMED_MAX_TOKENS
        return (2 + named) * prompt + asked.ask.max_tokens + len(asked.answer.tokens)

    async def check(self, asked: Asked) -> Check:
        """Return the check of one answer.

        Raises httpx.TransportError when the server is not there, _BrokenError when it fails to say it again.
        """
        request, tokens = asked.ask.request, len(asked.answer.tokens or asked.answer.words)
        past = await self._past_cache()
        try:
            reply = await self._rerun(asked, past)
        except (_RefusedError, MalformedStreamError) as error:
            return Check(request=request, tokens=tokens, rerun_why=str(error), surprisal_why=str(error), bypassed=False)
        place, gap = difference(asked.answer, reply)
        check = Check(
            request=request,
            tokens=tokens,
            text=reply.text,
            first_difference=place,
            gap=gap,
            bypassed=not past or reply.cached_tokens == 0,
            rerun_why="" if reply.places else NO_LOGPROBS,
        )
        try:
            scores = await self._scores(asked, reply, past)
        except (_RefusedError, _BrokenError, MalformedStreamError) as error:
            return msgspec.structs.replace(check, surprisal_why=str(error))
        return msgspec.structs.replace(
            check,
            surprisals=scores.surprisals,
            deficits=scores.deficits,
            surprisals_under_load=_stream_surprisals(asked.answer),
        )

    async def _past_cache(self) -> dict[str, Any]:
        """Drop the server's cache, or return what keeps a request from it."""
        if self._flushes:
            self._flushes = await flush_cache(self._client)
        if self._flushes:
            return {}
        self._salted += 1
        name = "extra_key" if self._client.api == "generate" else "cache_salt"
        return {name: f"repro-check-{self._salted}"}

    async def _rerun(self, asked: Asked, past: dict[str, Any]) -> Reply:
        api = self._client.api
        ask = msgspec.structs.replace(asked.ask, request=f"{asked.ask.request}.clean")
        wanted = ASKED_FOR[api] | _TOPS_ASKED_FOR[api] | past
        reply = read_reply(api, await self._post(PATHS[api], self._client.body(ask, stream=False, extra=wanted)))
        self._checks.tokens += reply.prompt_tokens + reply.completion_tokens
        return reply

    async def _scores(self, asked: Asked, reply: Reply, past: dict[str, Any]) -> Scores:
        answer = asked.answer.tokens
        if not answer:
            raise _RefusedError(NO_IDS)
        api = self._client.api
        prompt = reply.prompt_ids or await self._prompt_ids(asked, reply)
        self._checks.tokens += len(prompt) + len(answer)
        path, body = _score_request(api, self._client.model, prompt, tuple(answer), past)
        scores = read_scores(api, await self._post(path, msgspec.json.encode(body)), answer)
        if scores is None:
            raise _RefusedError(f"{path} came without the log-probabilities of its prompt")
        return scores

    async def _prompt_ids(self, asked: Asked, reply: Reply) -> tuple[int, ...]:
        """Return the prompt's token ids, which the server's own count must confirm.

        /tokenize splits it; where that does not work (SGLang 0.5.11 fails for a tokenizer without a length limit),
        the log-probabilities of a short prompt name its tokens.
        """
        if self._client.api != "generate":
            raise _RefusedError(NO_IDS)
        text = plain_prompt(asked.ask.messages)
        ids = await self._split(text) if self._tokenizes else ()
        if not ids and reply.prompt_tokens > PROMPT_NAMED_MAX_TOKENS:
            raise _RefusedError("the prompt's token ids are not to be had: /tokenize does not work")
        ids = ids or await self._named(text, reply.prompt_tokens)
        if len(ids) != reply.prompt_tokens:
            raise _RefusedError(f"the prompt is {len(ids)} tokens to /tokenize, and {reply.prompt_tokens} to /generate")
        return ids

    async def _split(self, text: str) -> tuple[int, ...]:
        """Return a text's token ids by /tokenize; () where that does not work."""
        body = msgspec.json.encode({"model": self._client.model, "prompt": text})
        try:
            return tuple(msgspec.json.decode(await self._post("/tokenize", body), type=_Tokenized).tokens)
        except (_RefusedError, _BrokenError, *DECODE_ERRORS):
            self._tokenizes = False
            return ()

    async def _named(self, text: str, tokens: int) -> tuple[int, ...]:
        """Return the ids of a prompt's tokens, by asking for all their log-probabilities."""
        self._checks.tokens += tokens
        body = {"text": text, "sampling_params": ONE_TOKEN, "return_logprob": True, "logprob_start_len": 0}
        return read_prompt_ids(await self._post("/generate", msgspec.json.encode(body)))

    async def _post(self, path: str, body: bytes) -> bytes:
        """Return the body of a reply. Raises _RefusedError, or _BrokenError from 500 on, in the server's words."""
        try:
            status, reply = await self._send(path, body)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            # Servers close a connection behind an error of theirs without a word. To ask again changes nothing here.
            status, reply = await self._send(path, body)
        if status == 200:
            return reply
        text = f"{path} answered {status}: {message_of(json_or_text(reply))}"
        raise _BrokenError(text) if status >= SERVER_ERROR else _RefusedError(text)

    async def _send(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of a reply. Raises _BrokenError for one that has no end."""
        headers, read = {"Content-Type": "application/json"}, bytearray()
        async with self._client.http.stream("POST", path, content=body, headers=headers) as response:
            async for part in response.aiter_bytes():
                read += part
                if len(read) > REPLY_BYTES_MAX:
                    raise _BrokenError(f"{path} answered with more than {REPLY_BYTES_MAX >> 20} MiB")
        return response.status_code, bytes(read)


class _Tokenized(msgspec.Struct):
    tokens: list[int]


def _score_request(
    api: Api, model: str, prompt: tuple[int, ...], answer: tuple[int, ...], past: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request that sends an answer back behind its prompt, one token asked for.

    vLLM computes a prompt anew whose log-probabilities are wanted.
    """
    if api == "generate":
        wanted = {"return_logprob": True, "logprob_start_len": len(prompt) - 1, "top_logprobs_num": 1}
        return "/generate", {"input_ids": prompt + answer, "sampling_params": ONE_TOKEN, **wanted, **past}
    body = {"model": model, "prompt": prompt + answer, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1}
    return "/v1/completions", body | past


def difference(answer: Answer, reply: Reply) -> tuple[int, float | None]:
    """Return where a rerun first differs from the answer, and how much likelier it found its own token, in nats.

    (-1, 0.0) for nowhere. The likelihood is at least that where the answer's token was not among the alternatives,
    the margin over the second best where the answer has no token there, and None where it cannot be told. An answer
    that was given up is compared as far as it had come. Texts of tokens are taken at their word only if the stream
    brought them all: SGLang leaves those out that show no text yet (parts of a character).
    """
    whole = answer.finish in WHOLE
    if answer.tokens and reply.ids:
        mine: Sequence[Key] = answer.tokens
        theirs: Sequence[Key] = reply.ids
    elif answer.text == reply.text or (not whole and reply.text.startswith(answer.text)):
        return -1, 0.0
    elif reply.places and _words_are_whole(answer):
        mine, theirs = answer.words, [place.key for place in reply.places]
    else:
        return 0, None
    place = next((at for at, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other), -1)
    if place < 0 and (len(mine) == len(theirs) or (not whole and len(mine) < len(theirs))):
        return -1, 0.0
    place = min(len(mine), len(theirs)) if place < 0 else place
    return place, _gap(_key_at(answer, place), reply.places[place]) if place < len(reply.places) else None


def _stream_surprisals(answer: Answer) -> tuple[float, ...]:
    """Return the surprisal of each token as it came with the answer; () where one came without."""
    return tuple(-each for each in answer.logprobs) if len(answer.logprobs) == len(answer.tokens) else ()


def _words_are_whole(answer: Answer) -> bool:
    """Return whether each token of the answer came with its text."""
    return bool(answer.words) and (answer.counts is None or answer.counts.completion_tokens in (0, len(answer.words)))


def _key_at(answer: Answer, place: int) -> tuple[Key, ...]:
    """Return the names of the answer's token at this place, its id and its text; none behind the answer's end."""
    return (*answer.tokens[place : place + 1], *answer.words[place : place + 1])


def _gap(keys: Sequence[Key], place: Place) -> float | None:
    others = {key: logprob for key, logprob in place.tops.items() if key != place.key}
    if not others:
        return None
    found = [others[key] for key in keys if key in others]
    least = min(others.values()) if keys else max(others.values())
    return max(0.0, place.logprob - (found[0] if found else least))
