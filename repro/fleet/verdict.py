"""From reasons to the verdict of many runs."""

from collections.abc import Mapping, Sequence

from repro.base.verdict_word import VerdictWord

ORDER = (VerdictWord.FAILED, VerdictWord.ANOMALY, VerdictWord.VACUOUS, VerdictWord.INCONCLUSIVE)


def verdict_of(reasons: Mapping[VerdictWord, Sequence[str]]) -> tuple[VerdictWord, tuple[str, ...]]:
    """Return the first word that has a reason, clean without any; then its reasons, and those of the other words."""
    word = next((each for each in ORDER if reasons.get(each)), VerdictWord.CLEAN)
    first = reasons.get(word, ())
    others = [reason for each in ORDER for reason in reasons.get(each, ()) if reason not in first]
    return word, (*first, *others)
