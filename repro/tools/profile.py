"""Learns from clean runs how a model accepts its drafts when all is well."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from detectors.answers.acceptance import ARL_TOKENS
from detectors.answers.acceptance_profile import AcceptanceProfile, CleanAnswer, alarms, chart_of, learn
from repro.base.errors import UsageError
from repro.base.json_file import write_struct
from repro.base.verdict_word import VerdictWord
from repro.record.requests import WHOLE
from repro.record.view import open_run


class Learned(msgspec.Struct, frozen=True):
    """A profile, and how many of the answers that it was learned from its change detection convicts."""

    profile: AcceptanceProfile
    alarms: int
    windows: int


def learn_profile(runs: Sequence[Path], out: Path, *, model: str, tokens_min: int) -> Learned:
    """Learn from the whole answers of clean runs, write the profile to `out`, and return it.

    Raises UsageError for a run that is not clean, and for too few answers with counts.
    """
    answers = [answer for run in runs for answer in _clean_answers(run)]
    profile = learn(model, answers, tokens_min)
    chart = chart_of(profile, ARL_TOKENS)
    write_struct(out, profile)
    return Learned(profile, sum(alarms(chart, answer.window_rates) for answer in answers), sum(profile.windows))


def _clean_answers(path: Path) -> list[CleanAnswer]:
    run = open_run(path)
    word = run.verdict.word if run.verdict else run.meta.state
    if word != VerdictWord.CLEAN:
        raise UsageError(
            f"{path}: a profile is learned from clean runs, this one is {word}. "
            "Where healthy answers pass the fixed limits, replay with --acceptance length_min=1 --acceptance rate_max=1"
        )
    whole = [record for record in run.requests if record.finish in WHOLE and record.spec_verify_ct]
    return [CleanAnswer(record.spec, record.spec_window_rates) for record in whole if not record.suspect]
