"""Nights that have ended: one from its file, and those of the same suite beside a night's own folder."""

from contextlib import suppress
from pathlib import Path

from reports.night.night import FORMAT, PastNight
from repro.base.errors import UsageError
from repro.base.json_file import read_struct
from repro.fleet.nightly.journal import NightId

FILE = "nightly.json"
NIGHTS_MAX = 60
LATEST = "latest"


def read_night(path: Path) -> PastNight:
    """Return a night from its folder or its nightly.json. Raises UsageError for what is none."""
    file = path / FILE if path.is_dir() else path
    night = read_struct(
        file, PastNight, what=f"{FILE} of a night of this version", next_step=f"give the folder of a night, with {FILE}"
    )
    if night.format != FORMAT:
        raise UsageError(f"{file}: written in format {night.format}, this version reads {FORMAT}; make the night again")
    return night


def history_of(folder: Path, night: NightId) -> list[PastNight]:
    """Return the past nights of the same suite, target and defect beside `folder`, oldest first.

    A night that cannot be read is left out.
    """
    asked = (night.suite, night.target, night.defect)
    nights = []
    for file in sorted(folder.resolve().parent.glob(f"*/{FILE}")):
        with suppress(UsageError):
            past = read_night(file)
            if (past.suite, past.target, past.defect) == asked and past.utc < night.utc:
                nights.append(past)
    return sorted(nights, key=lambda past: past.utc)[-NIGHTS_MAX:]


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
    """Return why two nights cannot be compared; "" where they can. The stack's code may differ: it is compared."""
    if past.suite != night.suite:
        return f'its suite is "{past.suite}", and this one\'s is "{night.suite}"'
    if past.suite_hash != night.suite_hash:
        return f'the file of suite "{night.suite}" has changed since'
    if past.version != night.version:
        return f"it was made by version {past.version}, and this is {night.version}"
    return ""
