"""The funnel of a run as rows: how many requests reached each stage, or that this is unknown."""

from collections.abc import Mapping, Sequence

import msgspec

from detectors.answers.clean_cache import ORACLES
from detectors.answers.leak import CrossPromptLeak
from detectors.registry import NAMES, TEXT_NAMES
from repro.record.counts import funnel_of
from repro.record.exercised import Exercised
from repro.record.requests import RequestRecord

LABELS = {
    "requests": ("Requests", "all that were sent"),
    "exposed": ("Exposed", "had a part of their prefix loaded back from the host"),
    "raced": ("Raced", "an access of theirs conflicts with another that nothing orders it with"),
    "corrupted": ("Corrupted at first hand", "read bytes that were not the expected ones"),
    "poisoned": ("Poisoned by reuse", "read bytes that a corrupted request had stored"),
    "diverged": ("Diverged", "answered with another token than the clean decode"),
    "acceptance": ("Odd acceptance", "had more or fewer of their drafts accepted than a clean answer"),
    "visible": ("Visible", "convicted by a text detector, and the clean decode does not have it"),
}
JUDGED_BY = {  # stage -> detectors; where none of them applies, the stage is unknown
    "raced": ("ordering",),
    "corrupted": ("canary",),
    "poisoned": ("canary",),
    "diverged": ("divergence", *ORACLES),
}
NOT_TEXT = frozenset(NAMES) - {*TEXT_NAMES, CrossPromptLeak.name}
NOT_JUDGED = ("requests", "exposed")  # stages that need no detector


class Stage(msgspec.Struct, frozen=True):
    """One row of the funnel. `count` is None where it is unknown for this target."""

    key: str
    label: str
    about: str
    count: int | None


def stages_of(
    records: Sequence[RequestRecord],
    answers: Mapping[str, str],
    *,
    judged: bool = True,
    exercised: Exercised | None = None,
    at_url: bool = False,
) -> tuple[Stage, ...]:
    """Return the stages from all requests down to what a user would have seen; `answers` are the detectors'."""
    exercised = exercised or Exercised()
    exposed = sum(record.cached_host_tokens > 0 for record in records)
    counts = msgspec.structs.asdict(funnel_of(records)) | {"exposed": exposed}
    unknown = {key for key, names in JUDGED_BY.items() if names[0] in answers and not _applies(names, answers)}
    text = [name for name in answers if name not in NOT_TEXT]
    if text and not _applies(text, answers):
        unknown.add("visible")
    if not judged:
        unknown.update(key for key in LABELS if key not in NOT_JUDGED)
    if not exposed and (at_url or exercised.host_hit_tokens):  # host hits that no request reports
        unknown.add("exposed")
    absent = set() if _applies(("acceptance",), answers) else {"acceptance"}
    if exercised.transfers:  # prompts come from another machine
        absent.add("exposed")
    return tuple(
        Stage(key, label, about, None if key in unknown else counts[key])
        for key, (label, about) in LABELS.items()
        if key not in absent
    )


def _applies(names: Sequence[str], answers: Mapping[str, str]) -> bool:
    """Return whether any of these detectors could judge the run."""
    return any(answers.get(name, "not_applicable") != "not_applicable" for name in names)
