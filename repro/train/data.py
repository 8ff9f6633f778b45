"""Training rows: sessions as the server would encode them, with the assistant's tokens marked.

A batch is a pure function of (seed, step, context), so a resumed run sees what it would have seen.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.base import rng
from repro.serve.server.chat import ChatEncoder
from repro.trace import synth
from repro.trace.corpus import SourceFile
from repro.trace.format import Message, Session
from repro.train import styles

RENAMED_SESSIONS = 0.3
CHAT_SESSIONS = 0.08
TOKENS_PER_SOURCE = 160  # a session rarely needs a file for fewer tokens than these
NAME_WORDS_MAX = 20_000
INDEX_QUERIES = 32  # positions of a row at which the indexer is taught

Tokens = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Rows of one step. The last token of a row is only ever a target."""

    tokens: Tokens  # (rows, context + 1)
    answers: Mask  # (rows, context + 1): the assistant's tokens and the end token after them
    index_queries: npt.NDArray[np.int64]  # (rows, INDEX_QUERIES), below context - 1


class RowMaker:
    """Makes rows from a set of source files."""

    def __init__(self, encoder: ChatEncoder, sources: Sequence[SourceFile]) -> None:
        self._encoder = encoder
        self._sources = sources
        self._words = frequent_words(sources)

    def batch(self, seed: int, step: int, rows: int, context: int) -> Batch:
        """Return the batch of this step."""
        made = [self.row(seed, step, row, context) for row in range(rows)]
        tokens = np.stack([row[0] for row in made])
        answers = np.stack([row[1] for row in made])
        draw = rng.generator(seed, "index-queries", step)
        return Batch(tokens, answers, np.stack([_index_queries(draw, mask) for mask in answers]))

    def row(self, seed: int, step: int, row: int, context: int) -> tuple[Tokens, Mask]:
        """Return (tokens, answers) of length context + 1: one session, more if it is too short."""
        draw = rng.generator(seed, "row", step, row)
        tokens: list[int] = []
        while len(tokens) <= context:
            session = self._session(draw, seed, step, row, context - len(tokens))
            tokens += encode_session(self._encoder, session)
        array = np.array(tokens[: context + 1], dtype=np.uint16)
        return array, answer_mask(array, self._encoder)

    def _session(self, draw: np.random.Generator, seed: int, step: int, row: int, missing: int) -> Session:
        sources = styles.slices(draw, self._sources, 4 + missing // TOKENS_PER_SOURCE)
        if draw.random() < CHAT_SESSIONS:
            return styles.chat(draw, sources, turns=max(2, missing // 250))
        if draw.random() < RENAMED_SESSIONS:
            sources = styles.renamed(draw, sources, self._words)
        kinds = synth.TRAINED_KINDS
        kind = kinds[int(draw.integers(len(kinds)))]
        index = int(draw.integers(2**31))
        target = max(500, int(missing * 1.08))
        return synth.synthesise(kind, seed, index, prompt_tokens_target=target, sources=sources)


def openai_messages(session: Session, turns: int | None = None) -> list[dict[str, Any]]:
    """Return the history after `turns` turns (all of them by default) as OpenAI messages."""
    messages: list[dict[str, Any]] = []
    for turn in session.turns[:turns]:
        messages += [openai_message(message) for message in turn.messages]
        if turn.reply is not None:
            messages.append(openai_message(turn.reply))
    return messages


def openai_message(message: Message) -> dict[str, Any]:
    """Return one message as an OpenAI dict."""
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content} | ({"tool_calls": calls} if calls else {})


def encode_session(encoder: ChatEncoder, session: Session) -> list[int]:
    """Return the tokens of a whole session, ended as the model ends its last answer."""
    tokens = encoder.encode_chat(openai_messages(session), session.tools, add_generation_prompt=False)
    return [*tokens, encoder.special_id("<|user|>")]


def answer_mask(tokens: Tokens, encoder: ChatEncoder) -> Mask:
    """Return which tokens the assistant has to emit, the role that ends its turn included."""
    position = np.arange(len(tokens))
    opened = np.where(tokens == encoder.special_id("</think>"), position, -1)
    ends = np.isin(tokens, [encoder.special_id(name) for name in ("<|user|>", "<|observation|>")])
    ended = np.where(ends, position, -1)
    last_opened = np.maximum.accumulate(opened)
    # The end token itself still belongs to the answer, so only ends before it count.
    last_ended = np.concatenate([[-1], np.maximum.accumulate(ended)[:-1]])
    return np.asarray((last_opened > last_ended) & (position > last_opened))


def frequent_words(sources: Sequence[SourceFile]) -> tuple[str, ...]:
    """Return words of the sources, the most frequent first."""
    counts: Counter[str] = Counter()
    for source in sources:
        counts.update(set(word for line in source.lines for word in styles.words(line)))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word for word, _ in ranked[:NAME_WORDS_MAX])


def _index_queries(draw: np.random.Generator, answers: Mask) -> npt.NDArray[np.int64]:
    """Return positions to teach the indexer at: half anywhere, half just before an answer's token."""
    last = len(answers) - 3
    anywhere = draw.integers(last // 8, last, size=INDEX_QUERIES)
    before = np.flatnonzero(answers[1 : last + 1])
    if len(before):
        anywhere[: INDEX_QUERIES // 2] = draw.choice(before, size=INDEX_QUERIES // 2)
    return np.asarray(anywhere, dtype=np.int64)
