"""Every detector of the package. A new one is a file of its own and one line here.

The recorder, `repro detect`, the names that a scenario may expect, and the reports follow from these lists.
"""

from detectors.answers.acceptance import Acceptance
from detectors.answers.clean_cache import ORACLES
from detectors.answers.divergence import DIVERGENCE
from detectors.answers.leak import CrossPromptLeak
from detectors.base import EventDetector, TextDetector
from detectors.pages.canary import CanaryDetector
from detectors.pages.ordering import OrderingDetector
from detectors.pages.ownership import OwnershipDetector
from detectors.pages.sets import ALL, Sample
from detectors.text.garbled import Garbled
from detectors.text.rare_tokens import RareTokens, Vocabulary
from detectors.text.repetition import Repetition


def event_detectors(sample: Sample = ALL) -> tuple[EventDetector, ...]:
    """Return new detectors of one event stream; costly ones watch only the pages of `sample`."""
    return (
        OrderingDetector(sample),
        OwnershipDetector(),
        CanaryDetector(),
    )


def text_detectors(prompt: str, vocabulary: Vocabulary | None) -> tuple[TextDetector, ...]:
    """Return new detectors of one answer to this prompt, which judge how its text looks."""
    return (
        Garbled(prompt),
        Repetition(prompt),
        RareTokens(prompt, vocabulary),
    )


EVENT_NAMES = tuple(detector.name for detector in event_detectors())
TEXT_NAMES = tuple(detector.name for detector in text_detectors("", None))
NAMES = (*EVENT_NAMES, DIVERGENCE, *ORACLES, Acceptance.name, *TEXT_NAMES, CrossPromptLeak.name)
