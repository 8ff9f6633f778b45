"""Exact repetition at the end of a text: its period, its span, and how much of it is new."""

from collections.abc import Iterator
from typing import NamedTuple

REPEATS_MIN = 2.0


class Loop(NamedTuple):
    """A unit that repeats to the end of the text."""

    unit: str
    span: int

    @property
    def repeats(self) -> float:
        """Return how often the unit stands there, the broken one at the start included."""
        return self.span / len(self.unit)


def loops(text: str, anchors: tuple[int, ...], period_max: int) -> Iterator[Loop]:
    """Yield what the text may be repeating at its end, the shortest period first.

    The end of the text is looked for in the text before it, which gives the period. A short anchor
    may find a repetition within the unit, so longer ones are tried too.
    """
    before = 0
    for anchor in anchors:
        if len(text) < anchor + 1:
            return
        at = text.rfind(text[-anchor:], max(0, len(text) - anchor - period_max), len(text) - 1)
        if at < 0:
            return
        period = len(text) - anchor - at
        if period == before:
            continue
        before = period
        span = _span(text, period)
        if span >= REPEATS_MIN * period:
            yield Loop(text[-period:], span)


def beyond(loop: Loop, text: str, prompt: str) -> Loop:
    """Return the loop without what of its end the prompt repeats too, all but one unit of that."""
    unit = len(loop.unit)
    low = int(REPEATS_MIN * unit)
    if text[-low:] not in prompt:
        return loop
    high = loop.span
    while low < high:
        middle = (low + high + 1) // 2
        if text[-middle:] in prompt:
            low = middle
        else:
            high = middle - 1
    return loop._replace(span=loop.span - low + unit)


def _span(text: str, period: int) -> int:
    """Return how many characters at the end repeat with this period, the first unit included."""
    size = len(text)
    limit = size - period
    equal, step, growing = 0, max(period, 16), True
    while step and equal < limit:
        step = min(step, limit - equal)
        start, end = size - equal - step, size - equal
        if text[start:end] == text[start - period : end - period]:
            equal += step
            step = step * 2 if growing else step // 2
        else:
            growing = False
            step //= 2
    return equal + period
