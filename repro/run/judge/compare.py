"""The bundled stack's answers against the clean decode, which is written into their records."""

from collections.abc import Callable, Mapping, Sequence

from detectors.answers.divergence import AnswerPair, divergence
from detectors.answers.leak import CrossPromptLeak
from detectors.base import DetectorVerdict
from detectors.registry import TEXT_NAMES
from repro.base.rng import bits64
from repro.record.requests import RequestRecord
from repro.run.answer_detectors import client_text
from repro.run.checkpoint import Checkpoint
from repro.run.judge.clean_decode import Clean, CleanDecoder
from repro.run.judge.marks import acceptance_verdict, clean_answer_looks_wrong, leak_verdict, looks_wrong, text_verdicts
from repro.run.limits import LimitWatch
from repro.run.recorder import Recorder
from repro.serve.types import GenerateRequest

Decode = Callable[[Sequence[int]], str]
Done = Callable[[int, int], None]  # (answers compared so far, all that will be)

NOT_DECODED = "{} suspect answer(s) were not decoded again"


def judge_without_answers(recorder: Recorder) -> list[DetectorVerdict]:
    """Return the answers where numerics = "stamps" computes no logits: only acceptance can be judged."""
    why = "numerics = stamps moves no tensors: there is no answer to compare"
    acceptance = acceptance_verdict(recorder, recorder.acceptance_findings, "")
    silent = [DetectorVerdict(name, "not_applicable", (), why) for name in (*TEXT_NAMES, CrossPromptLeak.name)]
    return [DetectorVerdict("divergence", "not_applicable", (), why), acceptance, *silent]


def ask_clean_decode(
    recorder: Recorder,
    requests: Mapping[str, GenerateRequest],
    checkpoint: Checkpoint,
    context_tokens: int,
    *,
    sample: int,
    seed: int,
    done: Done,
) -> list[DetectorVerdict]:
    """Decode suspects and a sample of the others again, mark their requests, and return the detectors' answers."""
    model = checkpoint.model
    assert model.weights is not None

    def text(tokens: Sequence[int]) -> str:
        return client_text(checkpoint.encoder.decode([token for token in tokens if token not in model.eos]))

    wanted = to_decode(recorder.records, sample, seed)
    decoder = CleanDecoder(model.weights, context_tokens, model.eos)
    compared = compare(wanted, requests, decoder, text, recorder.limits, done)
    for record in wanted:
        if looks_wrong(record) and record.oracle:
            record.model_own = record.oracle == "same" or clean_answer_looks_wrong(record, recorder)
            record.visible = not record.model_own
    return [
        divergence(compared, asked=len(wanted)),
        acceptance_verdict(recorder, recorder.acceptance_findings, ""),
        *text_verdicts(recorder, NOT_DECODED),
        leak_verdict(recorder),
    ]


def to_decode(records: Sequence[RequestRecord], sample: int, seed: int) -> list[RequestRecord]:
    """Return every suspect and a seeded sample of the rest, in the order of their sessions."""
    answered = [record for record in records if record.tokens]
    suspects = [record for record in answered if record.suspect]
    rest = [record for record in answered if not record.suspect]
    rest.sort(key=lambda record: bits64(seed, "oracle", record.request))
    return sorted(suspects + rest[:sample], key=lambda record: (record.session, record.turn, record.attempt))


def compare(
    records: Sequence[RequestRecord],
    requests: Mapping[str, GenerateRequest],
    decoder: CleanDecoder,
    text: Decode,
    limits: LimitWatch,
    done: Done = lambda number, total: None,
) -> list[AnswerPair]:
    """Decode these answers again, alone and clean, and fill the oracle's fields of each record.

    A limit or a Ctrl-C ends it; the answers compared by then are returned.
    """
    compared: list[AnswerPair] = []
    try:
        for record in records:
            if limits.check_time():
                break
            compared.append(_compare(record, decoder.check(requests[record.request], tuple(record.tokens)), text))
            done(len(compared), len(records))
    except KeyboardInterrupt:
        limits.interrupt()
    return compared


def _compare(record: RequestRecord, clean: Clean, text: Decode) -> AnswerPair:
    record.first_difference = clean.first_difference
    record.logit_gap = clean.logit_gap
    record.clean_tokens = list(clean.tokens)
    record.clean_text = text(clean.tokens)
    record.oracle = "diverged" if clean.first_difference >= 0 else "same"
    return AnswerPair(
        record.request, record.finished_us, clean.first_difference, clean.logit_gap, record.text, record.clean_text
    )
