"""Sentences that the terminal and the HTML report share."""

from reports.run.summary import Summary
from repro.record.counts import ContextsCut, Retries


def compared_text(summary: Summary) -> str:
    """Return how many answers were asked for again where nothing disturbs them; "" for none."""
    counts, of = summary.compared, summary.rate.of
    if not counts.compared:
        return ""
    how = "asked for again, alone" if summary.url else "decoded again on a clean cache"
    rest = f" and a sample of {counts.sample:,}" if counts.sample else ""
    suspects = f"{counts.suspects:,} {_plural(counts.suspects, 'suspect')}{rest}"
    return f"{counts.compared:,} of {of:,} answers were {how}: {suspects}; {counts.differing:,} came out different."


def model_own_text(summary: Summary) -> str:
    """Return how many answers look wrong because the model answers so, without a fault; "" for none."""
    if not summary.model_own:
        return ""
    looks = _plural(summary.model_own, "answer looks", "answers look")
    them = "alone" if summary.url else "in the clean decode"
    return f"{summary.model_own:,} {looks} wrong {them} too: the model's own, which convicts nobody."


def cut_text(cut: ContextsCut) -> str:
    """Return how far histories were shortened; "" where all fitted."""
    if not cut.requests:
        return ""
    limit = f" of {cut.limit_tokens:,} tokens" if cut.limit_tokens else ""
    return (
        f"To fit the model's limit{limit}, {cut.turns:,} old {_plural(cut.turns, 'turn')} and {cut.characters:,} "
        f"characters were dropped from the histories of {cut.sessions:,} {_plural(cut.sessions, 'session')}; "
        f"{cut.requests:,} {_plural(cut.requests, 'request')} went out shortened; no turn was left out for it."
    )


def retries_text(retries: Retries) -> str:
    """Return what became of answers that were given up in their stream; "" where none was."""
    if not retries.aborted_retried:
        return ""
    answers = _plural(retries.aborted_retried, "answer was", "answers were")
    rest = f", {retries.retried_unanswered:,} not at all" if retries.retried_unanswered else ""
    return (
        f"{retries.aborted_retried:,} {answers} convicted in the stream, given up and asked for again: "
        f"{retries.retried_clean:,} came back clean, {retries.retried_convicted:,} convicted again{rest}."
    )


def loop_lag_text(summary: Summary) -> str:
    """Return how late the client's own event loop ran; "" in virtual time, where it never does."""
    lag = summary.loop_lag_ms
    if not lag.count:
        return ""
    return (
        f"The client's event loop ran late by p50 {lag.p50:,.1f} ms, p99 {lag.p99:,.1f}, "
        f"at most {lag.max:,.1f}: times shorter than that are its own doing."
    )


def _plural(count: int, one: str, many: str = "") -> str:
    return one if count == 1 else many or f"{one}s"
