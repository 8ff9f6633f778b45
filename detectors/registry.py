"""The detectors that read an answer while it arrives: from any target, token by token."""

from detectors.base import TextDetector
from detectors.text.garbled import Garbled
from detectors.text.rare_tokens import RareTokens, Vocabulary
from detectors.text.repetition import Repetition

NAMES = (Garbled.name, Repetition.name, RareTokens.name)


def text_detectors(prompt: str, vocabulary: Vocabulary | None) -> list[TextDetector]:
    """Return a new set of detectors for one answer to this prompt."""
    return [Garbled(prompt), Repetition(prompt), RareTokens(prompt, vocabulary)]
