"""Answers of a model that drafts: the counts that its server sends with the stream."""

from collections.abc import Callable, Iterator

import numpy as np

from detectors.answers.acceptance import Acceptance, AcceptanceRules
from detectors.answers.acceptance_profile import CleanAnswer
from repro.record.requests import SpecCounts

DRAFTS = 3
NO_RULES = AcceptanceRules(length_min=None, rate_max=None)


def steady(verifies: int, accepted: int, *, drafts: int = DRAFTS) -> list[SpecCounts]:
    """Return the counts after each of so many verifies, each of which accepts `accepted` drafts."""
    return [SpecCounts((accepted + 1) * n, n, accepted * n, drafts * n) for n in range(1, verifies + 1)]


def drawn(draw: np.random.Generator, tokens: int, accepts: Callable[[int], float]) -> Iterator[SpecCounts]:
    """Yield the counts of a chain of drafts; each is accepted with `accepts(tokens so far)` until one is not."""
    counts = SpecCounts()
    while counts.completion_tokens < tokens:
        right = draw.random(DRAFTS) < accepts(counts.completion_tokens)
        accepted = int(right.cumprod().sum())
        counts = SpecCounts(
            counts.completion_tokens + accepted + 1,
            counts.spec_verify_ct + 1,
            counts.spec_accept_token_num + accepted,
            counts.spec_draft_token_num + DRAFTS,
        )
        yield counts


def clean_answers(answers: int, accepts: float, *, tokens: int = 600, seed: int = 0) -> list[CleanAnswer]:
    """Return answers of a healthy model, as a run folder has them."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(answers):
        detector = Acceptance(NO_RULES)
        counts = SpecCounts()
        for counts in drawn(draw, tokens, lambda seen: accepts):
            detector.feed(counts)
        made.append(CleanAnswer(counts, detector.window_rates))
    return made
