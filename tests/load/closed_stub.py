"""A server of which only the API is known: a small deterministic language model behind SGLang's or vLLM's routes.

The next token is a function of the last ones. One in four places is a near-tie (NEAR nats), the others are sure. Under
load the server may flip near-ties, as rounding does, or say something out of the question, as a corrupted cache does.
"""

import json
import zlib
from typing import Any

from repro.load.asgi import Message
from tests.load.stubs import Receive, Send, event, reply

MODEL = "closed-stub"
WORDS = 64
NEAR, SURE, FAR = 0.05, 6.0, 12.0
CONTEXT = 4
EVENT_STREAM = [(b"content-type", b"text/event-stream")]


def token_of(word: str) -> int:
    return int(word[1:]) if word[:1] == "w" and word[1:].isdigit() else WORDS + zlib.crc32(word.encode()) % 1000


def split(text: str) -> list[int]:
    return [token_of(word) for word in text.split()]


def logprobs(prefix: list[int]) -> dict[int, float]:
    """The log-probabilities of the likeliest, the best first; any other token has -FAR."""
    draw = zlib.crc32(repr(prefix[-CONTEXT:]).encode())
    best, second = draw % WORDS, (draw // WORDS) % WORDS
    second = second if second != best else (best + 1) % WORDS
    margin = NEAR if draw % 4 == 0 else SURE
    return {best: -0.1, second: -0.1 - margin}


class ClosedStub:
    """`flips` and `corrupts` say what happens to which requests under load: name -> place of the answer; `doubts` whose
    tokens are told to be less likely then, by how many nats.

    `speaks` is sglang or vllm. Without `flushes` the cache cannot be dropped, without `counts` nothing is said of
    cached tokens, without `tells` there are no log-probabilities; with `key` no other key will do.
    """

    def __init__(
        self, speaks: str = "sglang", *, flushes: bool = True, counts: bool = True, tells: bool = True, key: str = ""
    ) -> None:
        self.speaks, self.flushes, self.counts, self.tells, self.key = speaks, flushes, counts, tells, key
        self.flips: dict[str, int] = {}
        self.corrupts: dict[str, int] = {}
        self.doubts: dict[str, float] = {}
        self.ids = True  # vLLM: return_token_ids is known
        self.tokenizes = True  # SGLang: /tokenize works
        self.drops: int | None = None  # chat: the place whose text the stream leaves out
        self.dies_after: int | None = None  # checks
        self.shows = True  # /generate: the text of its tokens
        self.babbles = ""  # instead of an answer
        self.refuses = False  # every request, in words that quote it
        self.refuses_checks = False
        self.paths: list[str] = []
        self.salts: list[str | None] = []  # of checks

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        raw = b""
        while True:
            message = await receive()
            raw += message["body"]
            if not message["more_body"]:
                break
        headers, path = dict(scope["headers"]), scope["path"]
        self.paths.append(path)
        if self.key and headers.get(b"authorization") != f"Bearer {self.key}".encode():
            told = f"Incorrect API key provided: {headers.get(b'authorization', b'').decode()}"
            await reply(send, 401, {"error": {"message": told}})
            return
        if path == "/v1/models":
            await reply(send, 200, {"data": [{"id": MODEL, "max_model_len": 4096}]})
        elif path == "/flush_cache":
            await reply(send, 200 if self.flushes else 404, {})
        elif path == "/tokenize" and self.speaks == "sglang":
            if not self.tokenizes:
                await reply(send, 500, {"detail": "Integer exceeds 64-bit range"})
                return
            ids = split(json.loads(raw)["prompt"])
            await reply(send, 200, {"tokens": ids, "count": len(ids), "max_model_len": 4096})
        else:
            await self._generated(path, json.loads(raw), headers.get(b"x-request-id", b"").decode(), send)

    async def _generated(self, path: str, body: dict[str, Any], name: str, send: Send) -> None:
        check = not body.get("stream")
        if self.refuses or (check and self.refuses_checks):
            await reply(send, 400, {"error": {"message": f"no such thing: {json.dumps(body)}"}})
            return
        if self.babbles:
            await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
            await send({"type": "http.response.body", "body": f"data: {self.babbles}\n\n".encode()})
            return
        if check:
            self.salts.append(body.get("cache_salt") or body.get("extra_key"))
            if self.dies_after is not None and len(self.salts) > self.dies_after:
                raise RuntimeError("the server died")
        if path == "/generate":
            prompt = body.get("input_ids") or split(body["text"])
            answer = self._answer(prompt, body["sampling_params"]["max_new_tokens"], "" if check else name)
            told = self._native(body, prompt, answer)
        else:
            prompt = body.get("prompt") or split("".join(each.get("content") or "" for each in body["messages"]))
            answer = self._answer(prompt, body["max_tokens"], "" if check else name)
            told = self._openai(path, body, prompt, answer)
        if check:
            await reply(send, 200, told)
            return
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
        if name in self.doubts:
            _doubt(told, self.doubts[name])
        if path != "/generate":
            choice = told["choices"][0]
            choice["delta"] = choice.pop("message", {})
            if self.drops is not None and "logprobs" in choice:
                del choice["logprobs"]["content"][self.drops]
        await send({"type": "http.response.body", "body": event(**told) + b"data: [DONE]\n\n"})

    def _answer(self, prompt: list[int], most: int, name: str) -> list[int]:
        answer: list[int] = []
        for place in range(most):
            likely = list(logprobs(prompt + answer))
            token = likely[0]
            if self.flips.get(name) == place:
                near = logprobs(prompt + answer)
                assert near[likely[0]] - near[likely[1]] < 1, "this place is no near-tie"
                token = likely[1]
            if self.corrupts.get(name) == place:
                token = next(each for each in range(WORDS) if each not in likely)
            answer.append(token)
        return answer

    def _native(self, body: dict[str, Any], prompt: list[int], answer: list[int]) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(answer),
            "finish_reason": {"type": "length"},
        }
        if self.counts:
            meta["cached_tokens"] = 0
        if self.tells and body.get("return_logprob"):
            meta["output_token_logprobs"], meta["output_top_logprobs"] = _entries(prompt, answer)
            start = body.get("logprob_start_len", -1)
            if start >= 0:
                judged, tops = _entries(prompt[: start + 1], prompt[start + 1 :])
                meta["input_token_logprobs"] = [[None, prompt[start], None], *judged]
                meta["input_top_logprobs"] = [None, *tops]
        return {"text": _text(answer) if self.shows else "", "output_ids": answer, "meta_info": meta}

    def _openai(self, path: str, body: dict[str, Any], prompt: list[int], answer: list[int]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if path.endswith("chat/completions"):
            choice["message"] = {"role": "assistant", "content": _text(answer)}
            if self.tells and body.get("logprobs"):
                choice["logprobs"] = {"content": _places(prompt, answer)}
        else:
            choice["text"] = _text(answer)
            if body.get("prompt_logprobs") is not None:
                choice["prompt_logprobs"] = [None, *(_judged(prompt, at) for at in range(1, len(prompt)))]
        told: dict[str, Any] = {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}
        told["usage"]["completion_tokens"] = len(answer)
        if self.counts:
            told["usage"]["prompt_tokens_details"] = {"cached_tokens": 0}
        if self.ids and body.get("return_token_ids"):
            choice["token_ids"] = answer
            told["prompt_token_ids"] = prompt
        return told


def _text(tokens: list[int]) -> str:
    return "".join(f"w{token} " for token in tokens)


def _entries(prefix: list[int], tokens: list[int]) -> tuple[list[Any], list[Any]]:
    """SGLang's lists: each token's own entry, and the likeliest at its place."""
    own, tops = [], []
    for place, token in enumerate(tokens):
        likely = logprobs(prefix + tokens[:place])
        own.append([likely.get(token, -FAR), token, None])
        tops.append([[value, other, None] for other, value in likely.items()])
    return own, tops


def _places(prompt: list[int], answer: list[int]) -> list[dict[str, Any]]:
    places = []
    for place, token in enumerate(answer):
        likely = logprobs(prompt + answer[:place])
        tops = [{"token": f"w{other} ", "logprob": value} for other, value in likely.items()]
        places.append({"token": f"w{token} ", "logprob": likely.get(token, -FAR), "top_logprobs": tops})
    return places


def _doubt(told: dict[str, Any], nats: float) -> None:
    """Tell each token of an answer to be less likely."""
    if "meta_info" in told:
        for entry in told["meta_info"]["output_token_logprobs"]:
            entry[0] -= nats
    else:
        for place in told["choices"][0]["logprobs"]["content"]:
            place["logprob"] -= nats


def _judged(prompt: list[int], place: int) -> dict[str, Any]:
    """vLLM's entry: the token itself and the likeliest, by id."""
    likely = logprobs(prompt[:place])
    entries = {prompt[place]: likely.get(prompt[place], -FAR)} | likely
    return {
        str(token): {"logprob": value, "rank": 1, "decoded_token": f"w{token} "} for token, value in entries.items()
    }
