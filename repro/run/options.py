"""How to run a scenario, and who watches it run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from detectors.answers.clean_cache import FALSE_ALARM_RATE
from repro.base.probe import Event
from repro.fault.plan import Fault
from repro.load.listener import SILENT, LoadListener
from repro.load.wire import Api
from repro.record.redact import redacted_error
from repro.record.requests import RequestRecord
from repro.schedule.overrides import Overrides
from repro.schedule.schedule import Schedule

ORACLE_TOKENS = 10_000_000  # enough to check a hundred answers of 50,000 tokens, which are sent twice
ORACLE_SAMPLE = 8  # answers that no detector suspects and that are decoded again


class RunOptions(msgspec.Struct, frozen=True):
    """How to run a scenario; run.json keeps it, and with the scenario's file it is all that a replay needs."""

    seed: int = 0
    control: bool = False  # guards in place: no defect
    no_faults: bool = False
    schedule: Schedule = Schedule()
    overrides: Overrides = msgspec.field(default=Overrides(), name="kept")
    url: str = ""  # a running server instead of the bundled stack
    api: Api = "chat"  # the server's API
    oracle_sample: int = ORACLE_SAMPLE
    calibration: str = ""  # a file of `repro calibrate`: the server's answers are checked on a clean cache
    false_alarm_rate: float = FALSE_ALARM_RATE  # per answer that is checked with the calibration
    oracle_tokens: int = ORACLE_TOKENS  # the most tokens that all checks may take
    redact: bool = False  # no text of a request or an answer in the record

    def armed(self, faults: Sequence[Fault]) -> tuple[Fault, ...]:
        """Return the faults of a run; a control keeps those that change no bytes."""
        if self.no_faults:
            return ()
        return tuple(fault for fault in faults if not (self.control and fault.do.corrupting))

    def redacted(self, records: list[RequestRecord]) -> list[RequestRecord]:
        """Return the requests as the verdict's sentences may quote them."""
        if not self.redact:
            return records
        return [msgspec.structs.replace(record, error=redacted_error(record.error)) for record in records]


@dataclass(frozen=True)
class Watch:
    """Who watches a run, and its clock of real time: the default clock stands still, so that no run times out."""

    clock_s: Callable[[], float] = lambda: 0.0  # the scenario's limits.wall_s is measured with it
    load: LoadListener = SILENT  # hears the load, and the answers that are asked for again
    note: Callable[[str], None] = lambda text: None  # hears sentences for the user before the load begins
    listeners: tuple[Callable[[Event], None], ...] = ()  # hear the stack's events
