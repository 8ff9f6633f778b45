"""The event log: readable after a kill, bounded, and clear about a full disk."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repro.base.errors import RecordError
from repro.base.probe import AnyEvent, LimitEvent, RequestEvent
from repro.record.events import Fingerprint, fingerprint_of
from repro.record.lines import LineFile, read_lines
from repro.record.log import EventLog, read_events
from tests.builders import make_op, race_events

ROOT = Path(__file__).parents[2]


def write(path: Path, events: list[AnyEvent], **options: int) -> tuple[EventLog, Fingerprint]:
    fingerprint = Fingerprint()
    log = EventLog(path, fingerprint, **options)
    for event in events:
        log.emit(event)
    log.close()
    return log, fingerprint


def test_a_log_reads_back_in_order_with_the_fingerprint_it_was_written_with(tmp_path: Path) -> None:
    _, fingerprint = write(tmp_path / "e", race_events())
    assert list(read_events(tmp_path / "e")) == race_events()
    assert fingerprint_of(read_events(tmp_path / "e")) == fingerprint.hexdigest()


def test_a_killed_process_leaves_every_event_up_to_the_last_flush(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from repro.record.log import EventLog\n"
        "from repro.record.events import Fingerprint\n"
        "from repro.base.probe import RequestEvent\n"
        "log = EventLog(pathlib.Path(sys.argv[1]), Fingerprint(), flush_s=0.02)\n"
        "for n in range(1000): log.emit(RequestEvent('received', f'r{n}', n))\n"
        "print('emitted', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "e")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"emitted\n"
        deadline = time.monotonic() + 20
        while len(list(read_events(tmp_path / "e"))) < 1000 and time.monotonic() < deadline:
            time.sleep(0.02)  # nothing is emitted any more: only the log's own timer can write
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close() if child.stdout else None
    events = list(read_events(tmp_path / "e"))
    assert [event.request for event in events if isinstance(event, RequestEvent)] == [f"r{n}" for n in range(1000)]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "e", race_events())
    with (tmp_path / "e").open("ab") as file:
        file.write(b'{"e":"op","stream":"lo')
    assert list(read_events(tmp_path / "e")) == race_events()


def test_a_changed_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(b'{"e":"pages","id":1,"ranges":[1,2]}\nnonsense\n')
    with pytest.raises(RecordError, match=r"e:2: no event"):
        list(read_events(tmp_path / "e"))


def test_the_limit_is_told_once_in_the_log_and_leaves_the_fingerprint_alone(tmp_path: Path) -> None:
    events: list[AnyEvent] = [make_op(index=number) for number in range(100)]
    log, fingerprint = write(tmp_path / "e", events, bytes_max=8_000)
    kept = list(read_events(tmp_path / "e"))
    assert (tmp_path / "e").stat().st_size <= 8_000
    assert kept[:-1] == events[: len(kept) - 1]
    last = kept[-1]
    assert isinstance(last, LimitEvent) and last.what == "event_log"
    assert last.detail == {"bytes_max": 8_000, "events": len(kept) - 1}
    assert last.at_us == events[len(kept) - 1].end_us  # type: ignore[union-attr]
    assert log.dropped_events == 100 - (len(kept) - 1)
    assert fingerprint.hexdigest() == fingerprint_of(events)


def test_a_full_disk_is_told_once_and_what_was_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.pwrite, [1_000]

    def pwrite(file: int, content: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(file, bytes(content[: room[0]]), offset)
        room[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    log = EventLog(tmp_path / "e", Fingerprint(), flush_s=3600)
    for event in race_events():
        log.emit(event)
    with pytest.raises(RecordError) as caught:
        log.close()
    assert "No space left on device" in str(caught.value) and str(tmp_path / "e") in str(caught.value)
    assert "run again" in str(caught.value)
    log.emit(make_op())
    log.close()
    kept = list(read_events(tmp_path / "e"))
    assert 0 < len(kept) < len(race_events()) and kept == race_events()[: len(kept)]


def test_the_owner_hears_of_a_full_disk_that_the_timer_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = EventLog(tmp_path / "e", Fingerprint(), flush_s=3600)
    log.emit(make_op())
    monkeypatch.setattr(os, "pwrite", refuse)
    log.flush()
    with pytest.raises(RecordError):
        log.emit(make_op())
    log.emit(make_op())
    assert log.dropped_events == 2


def test_ctrl_c_between_writing_and_noting_it_repeats_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, interrupted = os.pwrite, []

    def pwrite(file: int, content: bytes, offset: int) -> int:
        written = real(file, content, offset)
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    file = LineFile(tmp_path / "l", bytes_max=1_000)
    with pytest.raises(KeyboardInterrupt):
        file.append(b"one")
    assert file.append(b"two")
    file.close()
    assert [line for _, line in read_lines(tmp_path / "l")] == [b"one", b"two"]


def test_a_file_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("kept")
    with pytest.raises(RecordError, match="cannot be created"):
        EventLog(tmp_path / "e", Fingerprint())
    assert (tmp_path / "e").read_text() == "kept"
