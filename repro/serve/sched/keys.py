"""The keys that the radix tree finds a cached prefix by.

Without speculation a key is a token. A row of the draft layer depends on its token and on the next one, so with
speculation a page is another's only if the token behind it is the same too: a key is the pair of a token and the
next, as SGLang does it for EAGLE.
"""

from repro.base.rng import bits64
from repro.serve.kv.radix.node import TokenRun
from repro.serve.sched.request import Request


def pair_keys(tokens: TokenRun, vocabulary: int) -> TokenRun:
    """Return one key for each token that has a successor in `tokens`."""
    return tokens[:-1] * vocabulary + tokens[1:]


def of_namespace(keys: TokenRun, name: str) -> TokenRun:
    """Return the keys as requests of one `cache_key` share them, and no others; "" is a namespace too.

    The tree finds a prefix from its first token on, so it is enough that no other namespace has this first key: ids
    and pairs of them are never below 0.
    """
    if len(keys) and name:
        keys = keys.copy()
        keys[0] = -1 - (bits64(int(keys[0]), "cache_key", name) >> 2)
    return keys


class CacheKeys:
    """The keys of one engine's requests."""

    def __init__(self, speculative: bool, vocabulary: int) -> None:
        self._speculative = speculative
        self._vocabulary = vocabulary

    def stored_max(self, request: Request) -> int:
        """Return how many tokens of prompt and answer can be cached: the draft layer has no row of the last yet."""
        return len(request.prompt) + len(request.output) - self._speculative

    def first(self, request: Request, count: int) -> TokenRun:
        """Return the keys of the first `count` tokens of prompt and answer."""
        return self.of(request.tokens, count, request.wire.cache_key)

    def hit(self, request: Request) -> TokenRun:
        """Return the keys of the longest prefix that a request may hit: it computes every token that it judges.

        They stay the same while it waits, so that a request without room does not build them each round.
        """
        if request.hit_keys is None:
            most = request.prefill_tokens - 1
            judged_from = most if request.replayed else request.wire.score_from
            request.hit_keys = self.first(request, most if judged_from is None else min(most, judged_from))
        return request.hit_keys

    def of(self, tokens: TokenRun, count: int, cache_key: str) -> TokenRun:
        """Return the keys of the first `count` of these tokens in a namespace."""
        keys = pair_keys(tokens[: count + 1], self._vocabulary) if self._speculative else tokens[:count]
        return of_namespace(keys, cache_key)
