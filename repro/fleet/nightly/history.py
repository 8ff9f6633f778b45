"""Past nights of a suite: the folders beside a night's own."""

from contextlib import suppress
from pathlib import Path

from reports.night.night import PastNight
from repro.base.errors import UsageError
from repro.fleet.nightly.compare import FILE, read_night
from repro.fleet.nightly.journal import NightId

NIGHTS_MAX = 60
LATEST = "latest"


def history_of(folder: Path, night: NightId) -> list[PastNight]:
    """Return the past nights of the same suite beside `folder`, oldest first; what cannot be read is no history.

    Nor is a night of another target, or with another defect: what was put in is no history of what is there.
    """
    asked = (night.suite, night.target, night.defect)
    found = []
    for file in sorted(folder.resolve().parent.glob(f"*/{FILE}")):
        with suppress(UsageError):
            past = read_night(file)
            if (past.suite, past.target, past.defect) == asked and past.utc < night.utc:
                found.append(past)
    return sorted(found, key=lambda past: past.utc)[-NIGHTS_MAX:]


def baseline_of(given: str, history: list[PastNight], night: NightId) -> PastNight | None:
    """Return the night to compare with; None for "latest" where no past night fits.

    Raises UsageError for a night that was named and cannot be compared: of another suite, or of another version.
    """
    if given == LATEST:
        fitting = [past for past in history if not _differs(past, night)]
        return fitting[-1] if fitting else None
    past = read_night(Path(given))
    if wrong := _differs(past, night):
        raise UsageError(f"--baseline {given}: {wrong}; give a night of the same, or --baseline {LATEST}")
    return past


def _differs(past: PastNight, night: NightId) -> str:
    """Return why two nights cannot be compared; "" where they can. The stack's code may differ: that is asked."""
    if past.suite != night.suite:
        return f'its suite is "{past.suite}", and this one\'s is "{night.suite}"'
    if past.suite_hash != night.suite_hash:
        return f'the file of suite "{night.suite}" has changed since'
    if past.version != night.version:
        return f"it was made by version {past.version}, and this is {night.version}"
    return ""
