"""The text detectors of a run: online over each answer, and once more over the clean one.

Both sides are judged in the form in which a client is shown an answer: without the end token, tool
calls parsed. Control tokens that are left in it then are leaked ones.
"""

from collections.abc import Sequence

import msgspec
from tokenizers import Tokenizer

from detectors.base import Finding, TextDetector
from detectors.rare_tokens import Vocabulary
from detectors.text import NAMES as TEXT_DETECTORS
from detectors.text import text_detectors
from repro.serve.server.chat import parse

__all__ = ["TEXT_DETECTORS", "TextJudges", "shown", "vocabulary_of"]

# Control tokens that an answer is made of; the others belong to the template around it.
MARKUP = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip


class TextJudges:
    """Makes the text detectors of each request (`load.plan.DetectorsFor`)."""

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        self._vocabulary = vocabulary

    def __call__(self, request: str, prompt: str) -> list[TextDetector]:
        """Return fresh detectors for one answer."""
        return text_detectors(prompt, self._vocabulary)

    def convicting(self, prompt: str, text: str, tokens: Sequence[int]) -> list[str]:
        """Return the names of the detectors that convict a whole answer."""
        findings: list[Finding | None] = []
        for detector in text_detectors(prompt, self._vocabulary):
            findings += [detector.feed(text, tuple(tokens)), detector.close()]
        return [finding.detector for finding in findings if finding is not None]


def shown(answer: str) -> str:
    """Return an answer's text, its end token cut off, as the load's client renders it."""
    content, calls = parse(answer)
    return content + "".join(f"\n[call {call.name}] {msgspec.json.encode(call.arguments).decode()}" for call in calls)


def vocabulary_of(tokenizer: Tokenizer, size: int, ends: frozenset[int]) -> Vocabulary:
    """Return which token ids a model of `size` logits can mean anything by, `ends` those that end an answer."""
    added = tokenizer.get_added_tokens_decoder()
    reachable = frozenset(tokenizer.get_vocab(with_added_tokens=True).values())
    control = {number: token.content for number, token in added.items() if token.content not in MARKUP}
    spellings = tuple(control[number] for number in sorted(control))
    return Vocabulary(size, reachable, frozenset(control) - ends, ends, spellings)
