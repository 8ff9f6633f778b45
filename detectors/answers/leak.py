"""Finds another session's words in an answer, by the nonce that each session carries.

A nonce is drawn at random and stands in its own session only. So no model can know one that is
not in its prompt: a stretch of it in the answer came out of another session's cache or buffers, and it convicts
whatever an undisturbed answer would have been. (TensorRT-LLM issue 8813, llama.cpp issue 28056.)
"""

import re
from collections.abc import Mapping

from detectors.base import Finding
from detectors.evidence import LeakedNonce

STRETCH_DIGITS = 12  # digits that convict a nonce leaked in part; a random text has the same 12 once in 3e14 places
EXCERPT_CHARACTERS = 200
_HEX = re.compile(f"[0-9a-f]{{{STRETCH_DIGITS},}}")


class Nonces:
    """The nonces of a load, found by any stretch of their digits; made once and shared by all answers."""

    def __init__(self, by_session: Mapping[str, str]) -> None:
        self._in_prompters: dict[str, str] = {}
        for session, nonce in by_session.items():
            for run in _HEX.findall(nonce):
                self._in_prompters.update(dict.fromkeys(_stretches(run), session))

    def __bool__(self) -> bool:
        return bool(self._in_prompters)

    def found(self, text: str) -> list[tuple[str, str]]:
        """Return the stretches of nonces in `text`, each with the session that the nonce belongs to."""
        runs = _HEX.findall(text)
        return [
            (each, self._in_prompters[each]) for run in runs for each in _stretches(run) if each in self._in_prompters
        ]


class CrossPromptLeak:
    """The detector of one answer; at most one finding. What the prompt holds is no leak."""

    name = "cross_prompt_leak"

    def __init__(self, prompt: str, nonces: Nonces) -> None:
        self._prompt = prompt
        self._nonces = nonces
        self._tail = ""  # too short for a stretch, and may become one
        self._in_prompt: set[str] = set()  # stretches that the prompt holds
        self._found = False

    def feed(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[float, ...] = ()) -> Finding | None:
        """Take what the answer has grown by; a finding with the twelfth digit."""
        text = self._tail + text
        self._tail = text[1 - STRETCH_DIGITS :]
        if self._found:
            return None
        for stretch, session in self._nonces.found(text):
            if stretch in self._in_prompt:
                continue
            if stretch in self._prompt:
                self._in_prompt.add(stretch)
                continue
            self._found = True
            evidence = LeakedNonce(session, stretch, _around(text, stretch))
            claim = f"the answer holds {stretch}, which stands in the prompt of session {session} and not in its own"
            return Finding(self.name, "text", claim, "another session's nonce in the answer", evidence=evidence)
        return None

    def close(self) -> Finding | None:
        """Nothing is left to look at."""
        return None


def _stretches(run: str) -> list[str]:
    return [run[at : at + STRETCH_DIGITS] for at in range(len(run) - STRETCH_DIGITS + 1)]


def _around(text: str, stretch: str) -> str:
    at = text.index(stretch)
    return text[max(0, at - EXCERPT_CHARACTERS) : at + STRETCH_DIGITS + EXCERPT_CHARACTERS]
