"""The online detectors of a run's answers, which judge the clean answers too.

Both are judged as a client gets them: without the end token, tool calls parsed. Control tokens that are left then
have leaked.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import asdict
from tokenizers import Tokenizer

from detectors.answers.acceptance import FALSE_ALARM_RATE, LENGTH_MIN, RATE_MAX, AcceptanceRules
from detectors.answers.acceptance_profile import read_profile
from detectors.answers.leak import CrossPromptLeak, Nonces
from detectors.base import Finding, TextDetector
from detectors.registry import text_detectors
from detectors.text.rare_tokens import Vocabulary
from repro.scenario.schema import AcceptanceSpec
from repro.serve.server.toolcalls import parse
from repro.trace.format import Session

PROFILE_FILE = "acceptance.json"  # beside a checkpoint: how its clean answers accept their drafts

# Control tokens that an answer is made of; the others belong to the template around it.
MARKUP = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip


class AnswerDetectors:
    """Makes the text detectors of each request (`LoadListener.text_detectors`)."""

    def __init__(self, vocabulary: Vocabulary | None, nonces: Nonces | None = None, *, has_text: bool = True) -> None:
        self.nonces = nonces  # None: no session has one, so no leak can be recognised
        self._vocabulary = vocabulary
        self._has_text = has_text  # False: numerics = "stamps" computes no text

    def __call__(self, request: str, prompt: str) -> list[TextDetector]:
        """Return fresh detectors for one answer."""
        if not self._has_text:
            return []
        detectors: list[TextDetector] = [*text_detectors(prompt, self._vocabulary)]
        return detectors if self.nonces is None else [*detectors, CrossPromptLeak(prompt, self.nonces)]

    def convicting(self, prompt: str, text: str, tokens: Sequence[int]) -> list[str]:
        """Return the names of the text detectors that convict a whole answer."""
        findings: list[Finding | None] = []
        for detector in text_detectors(prompt, self._vocabulary):
            findings += [detector.feed(text, tuple(tokens)), detector.close()]
        return [finding.detector for finding in findings if finding is not None]


def nonces_of(sessions: Sequence[Session]) -> Nonces | None:
    """Return the nonces of a load; None when no session has a nonce long enough to exclude chance."""
    return Nonces({session.id: session.nonce for session in sessions if session.nonce}) or None


def acceptance_rules(spec: AcceptanceSpec | None, checkpoint: Path | None) -> AcceptanceRules:
    """Return how acceptance is judged; `checkpoint` is the bundled model's folder, None for a server.

    Of the limits that the scenario does not name, a fixed one is dropped that a profile's clean answers pass, as
    the bundled model's may pass the rate (MODEL_CARD.md), and so are the quantiles of too few answers to promise
    FALSE_ALARM_RATE. Raises UsageError for a profile that cannot be read, and for a limit that makes no sense.
    """
    asked = {} if spec is None else {key: each for key, each in asdict(spec).items() if each is not None}
    named, learned = asked.pop("profile", ""), None if checkpoint is None else checkpoint / PROFILE_FILE
    path = Path(named) if named else learned if learned is not None and learned.is_file() else None
    limits: dict[str, Any] = {} if checkpoint is None else {"rate_max": None}
    profile = None if path is None else read_profile(path)
    if profile is not None:
        limits = {
            "length_min": LENGTH_MIN if profile.length[0].value >= LENGTH_MIN else None,
            "rate_max": RATE_MAX if profile.rate[-1].value <= RATE_MAX else None,
            "false_alarm_rate": FALSE_ALARM_RATE if profile.false_alarm_rate_min <= FALSE_ALARM_RATE else None,
        }
    rules = AcceptanceRules(**(limits | asked), profile=profile, required=spec is not None)
    rules.check()
    return rules


def client_text(answer: str) -> str:
    """Return an answer's text, its end token cut off, as the load's client renders it."""
    content, calls = parse(answer)
    return content + "".join(f"\n[call {call.name}] {msgspec.json.encode(call.arguments).decode()}" for call in calls)


@lru_cache(maxsize=2)
def vocabulary_of(tokenizer: Tokenizer, size: int, ends: frozenset[int]) -> Vocabulary:
    """Return which token ids a model of `size` logits can mean anything by, `ends` those that end an answer."""
    added = tokenizer.get_added_tokens_decoder()
    reachable = frozenset(tokenizer.get_vocab(with_added_tokens=True).values())
    control = {number: token.content for number, token in added.items() if token.content not in MARKUP}
    spellings = tuple(control[number] for number in sorted(control))
    return Vocabulary(size, reachable, frozenset(control) - ends, ends, spellings)
