"""What the detectors and the oracle say about a run: marks on its requests, and an answer each."""

from collections.abc import Callable, Sequence

from detectors.base import Answer, Verdict
from detectors.divergence import divergence
from repro.judges import TEXT_DETECTORS, TextJudges, shown
from repro.limits import LimitWatch
from repro.load.again import AskedAgain
from repro.observed import Observed
from repro.oracle.clean import CleanDecoder
from repro.oracle.compare import compare, to_decode
from repro.record.requests import RequestRecord
from repro.target import BundledTarget, ServerTarget

NOT_DECODED = "{} suspect answer(s) were not decoded again"
NOT_ASKED = "{} suspect answer(s) could not be asked for again"
NOT_FLUSHED = (
    "{} suspect answer(s) look wrong when asked for again, alone, too. The server did not drop its cache "
    "(POST /flush_cache), so that is either the model's own or a corrupted prefix"
)


def verdicts_of(
    observed: Observed,
    target: BundledTarget | ServerTarget,
    judges: TextJudges,
    *,
    sample: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Verdict]:
    """Mark the requests with what the detectors say, ask the oracle, and return all answers."""
    for record in observed.records:
        record.raced = record.request in observed.ordering.raced
        record.corrupted = record.request in observed.canary.corrupted
        record.poisoned = record.request in observed.canary.poisoned
        record.origin = observed.canary.poisoned.get(record.request, "")
    verdicts = [observed.ordering.verdict(), observed.ownership.verdict(), observed.canary.verdict()]
    if isinstance(target, ServerTarget):
        return verdicts + _of_server(observed, target.said_again, judges)
    if target.checkpoint.model.weights is None:
        why = "numerics = stamps moves no tensors: there is no answer to compare"
        return [*verdicts, *(Verdict(name, "not_applicable", (), why) for name in ("divergence", *TEXT_DETECTORS))]
    wanted = to_decode(observed.records, sample, seed)
    verdicts.append(_ask_oracle(wanted, target, observed.limits, progress))
    for record in wanted:
        if record.detectors and record.oracle:
            record.own = record.oracle == "same" or _repeats(record, observed, judges)
            record.visible = not record.own
    return verdicts + _text_verdicts(observed, NOT_DECODED)


def _ask_oracle(
    wanted: list[RequestRecord], target: BundledTarget, limits: LimitWatch, progress: Callable[[int, int], None]
) -> Verdict:
    model = target.checkpoint.model
    assert model.weights is not None
    decoder = CleanDecoder(model.weights, target.config.context_tokens, model.eos)

    def text(tokens: Sequence[int]) -> str:
        return shown(target.checkpoint.encoder.decode([token for token in tokens if token not in model.eos]))

    compared = compare(wanted, target.kept.requests, decoder, text, limits, progress)
    return divergence(compared, asked=len(wanted))


def _of_server(observed: Observed, again: AskedAgain, judges: TextJudges) -> list[Verdict]:
    """Judge suspects by what the server says alone: wrong there too is the model's own, if the cache was dropped."""
    for record in observed.records:
        if not record.detectors or record.request not in again.texts:
            continue
        record.clean_text = again.texts[record.request]
        repeats = record.clean_text == record.text or _repeats(record, observed, judges)
        if again.flushed or not repeats:
            record.oracle = "same" if record.clean_text == record.text else "other"
            record.own, record.visible = repeats, not repeats
    why = "a server at a URL has no clean decode of ours to compare with"
    unsure = NOT_ASKED if again.flushed or not again.texts else NOT_FLUSHED
    return [Verdict("divergence", "not_applicable", (), why), *_text_verdicts(observed, unsure)]


def _repeats(record: RequestRecord, observed: Observed, judges: TextJudges) -> bool:
    """Return whether a detector that convicts the answer convicts the undisturbed one too."""
    own = judges.convicting(observed.prompts[record.request], record.clean_text, record.clean_tokens)
    return any(name in own for name in record.detectors)


def _text_verdicts(observed: Observed, unsure: str) -> list[Verdict]:
    """Return the text detectors' answers; what is the model's own convicts nobody.

    A suspect that the oracle was not asked about is unknown; `unsure` says why, with a place for the count.
    """
    own = {record.request for record in observed.records if record.own}
    asked = {record.request for record in observed.records if record.oracle}
    verdicts = []
    for name in TEXT_DETECTORS:
        found = [f for f in observed.text_findings if f.detector == name and f.request not in own]
        sure = tuple(f for f in found if f.request in asked)
        why = unsure.format(len(found)) if found and not sure else ""
        answer: Answer = "anomaly" if sure else "unknown" if found else "clean"
        verdicts.append(Verdict(name, answer, sure, why, len(observed.records)))
    return verdicts
