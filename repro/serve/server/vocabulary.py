"""The tokenizer as the server needs it: prompts to ids, ids to their exact bytes."""

from functools import lru_cache

from tokenizers import Tokenizer

from repro.serve.server.chat import ChatEncoder
from repro.serve.server.errors import ApiError


@lru_cache(maxsize=2)
def vocabulary_of(tokenizer: Tokenizer) -> "Vocabulary":
    """Return the vocabulary of a tokenizer, the same for every server of this process."""
    return Vocabulary(tokenizer)


class Vocabulary:
    """A byte-level tokenizer. Raw prompts may spell control tokens, chat messages may not."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.chat = ChatEncoder(tokenizer.to_str())
        added = tokenizer.get_added_tokens_decoder()
        self._added = {number: token.content.encode() for number, token in added.items()}
        self._pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}
        self._byte_of = _byte_alphabet()
        self._bytes_max = max(map(len, self._pieces.values()))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a raw prompt, control tokens included."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for; none for an id outside the vocabulary."""
        if token in self._added:
            return self._added[token]
        piece = self._pieces.get(token, "")
        return bytes(self._byte_of[letter] for letter in piece if letter in self._byte_of)

    def token_text(self, token: int) -> str:
        """Return a token's text, with U+FFFD for a character cut by the token's borders."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def check_fits(self, text_length: int, context_tokens: int, param: str) -> None:
        """Refuse text so long that no split into tokens fits, before time is spent on splitting it."""
        if text_length > context_tokens * self._bytes_max:
            raise ApiError(
                f"{param} has {text_length} characters; the model's maximum context length of {context_tokens} tokens "
                f"can't hold more than {context_tokens * self._bytes_max}",
                param=param,
                code="context_length_exceeded",
            )


def _byte_alphabet() -> dict[str, int]:
    """Return which byte each letter of a byte-level piece stands for (GPT-2's alphabet).

    Printable bytes stand for themselves; the others, in order, are written from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}
