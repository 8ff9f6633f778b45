"""The detectors over an event file that any engine may have written (detectors/EVENTS.md)."""

from pathlib import Path

import msgspec

from detectors.base import DetectorVerdict, EventDetector, Finding
from detectors.pages.canary import CanaryDetector
from detectors.registry import event_detectors
from repro.base.errors import RecordError, UsageError
from repro.base.probe import unrolled
from repro.base.verdict_word import VerdictWord
from repro.record.events import decode_event
from repro.record.lines import raw_lines

FORMAT_FILE = "detectors/EVENTS.md"


class Detected(msgspec.Struct, frozen=True):
    """What `--json` prints. Vacuous: there was no access to judge."""

    verdict: VerdictWord
    events: int
    detectors: dict[str, str]
    checked: dict[str, int]  # accesses that each detector has looked at
    findings: list[Finding]


def detect(path: Path) -> Detected:
    """Judge a file of events, plain or packed with zstd.

    Raises UsageError with the line that is no event, or contradicts those before.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give a file of events, as {FORMAT_FILE} describes them")
    detectors = event_detectors()
    events = 0
    try:
        for events, line in enumerate(raw_lines(path), start=1):
            _feed(detectors, line, f"{path}:{events}")
    except RecordError as error:
        raise UsageError(str(error)) from error
    return _detected([detector.verdict() for detector in detectors], events)


def _feed(detectors: tuple[EventDetector, ...], line: bytes, where: str) -> None:
    try:
        for event in unrolled([decode_event(line.removesuffix(b"\n"))]):
            for detector in detectors:
                detector.feed(event)
    except RecordError as error:
        if not line.endswith(b"\n"):  # dropping it could hide what it was going to show
            torn = "the last line is torn; write it whole, or cut it off to judge those before"
            raise UsageError(f"{where}: {error}; {torn}") from error
        raise UsageError(f"{where}: {error}; {FORMAT_FILE} describes the format") from error
    except AssertionError as error:  # what the detectors take for granted of a whole record
        raise UsageError(f"{where}: {error}; {FORMAT_FILE} says in which order events have to come") from error
    except KeyError as error:
        raise UsageError(f'{where}: page set {error} was not named before; write its "pages" line first') from error


def _detected(verdicts: list[DetectorVerdict], events: int) -> Detected:
    answers = {verdict.detector: verdict.answer for verdict in verdicts}
    if answers[CanaryDetector.name] == "clean":  # the file does not say whether stamps were compared
        answers[CanaryDetector.name] = "not_applicable"
    word = VerdictWord.CLEAN if "clean" in answers.values() else VerdictWord.VACUOUS
    if "anomaly" in answers.values():
        word = VerdictWord.ANOMALY
    checked = {verdict.detector: verdict.checked for verdict in verdicts}
    found = [finding for verdict in verdicts for finding in verdict.findings]
    return Detected(word, events, {**answers}, checked, found)
