"""The event log: readable after a kill, bounded, and clear about a full disk."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from repro.base.errors import RecordError
from repro.base.probe import AnyEvent, LimitEvent, RequestEvent
from repro.record.events import Fingerprint, encode_line, fingerprint_of
from repro.record.lines import LINE_BYTES_MAX, ZSTD_MAGIC, LineFile, read_lines
from repro.record.log import EventLog, log_of, read_events
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


def plain(path: Path, events: list[AnyEvent]) -> None:
    path.write_bytes(b"".join(encode_line(event) + b"\n" for event in events))


def frame(events: list[AnyEvent]) -> bytes:
    """Return the frame that a log makes of these events."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(encode_line(e) + b"\n" for e in events))


def test_a_torn_last_line_of_a_plain_log_is_left_out(tmp_path: Path) -> None:
    plain(tmp_path / "e", race_events())
    with (tmp_path / "e").open("ab") as file:
        file.write(b'{"e":"op","stream":"lo')
    assert list(read_events(tmp_path / "e")) == race_events()


def test_a_frame_that_a_kill_cut_off_anywhere_spoils_none_before_it(tmp_path: Path) -> None:
    whole, last = frame(race_events()), frame(race_events())
    for length in range(len(last)):
        (tmp_path / "e").write_bytes(whole + last[:length])
        kept = list(read_events(tmp_path / "e"))
        assert kept[: len(race_events())] == race_events()
        assert kept == (race_events() * 2)[: len(kept)]


def test_a_frame_cut_off_within_its_lines_gives_the_lines_that_can_be_unpacked(tmp_path: Path) -> None:
    noise = random.Random(0)
    events: list[AnyEvent] = [RequestEvent("received", f"{noise.getrandbits(400):x}", n) for n in range(5_000)]
    packed = frame(events)
    (tmp_path / "e").write_bytes(packed[: len(packed) // 2])
    kept = list(read_events(tmp_path / "e"))
    assert 0 < len(kept) < len(events) and kept == events[: len(kept)]


@pytest.mark.parametrize("behind", [b"garbage", b"\0" * 4096, b'{"e":"pages","id":1,"ranges":[1,2]}\n'])
def test_garbage_behind_a_frame_is_told_after_all_events_before_it(behind: bytes, tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(frame(race_events()) + behind)
    kept = []
    with pytest.raises(RecordError, match=rf"e: damaged behind line {len(race_events())} .*`zstdcat e > events.jsonl`"):
        for event in read_events(tmp_path / "e"):
            kept.append(event)
    assert kept == race_events()


def test_a_changed_byte_is_told_by_the_checksum_of_its_frame(tmp_path: Path) -> None:
    changed = bytearray(frame(race_events()))
    changed[-1] ^= 1
    (tmp_path / "e").write_bytes(frame(race_events()) + changed)
    with pytest.raises(RecordError, match="damaged behind line .*checksum"):
        list(read_events(tmp_path / "e"))


def test_a_small_frame_that_holds_a_huge_line_is_refused(tmp_path: Path) -> None:
    bomb = frame(race_events()) + zstandard.ZstdCompressor().compress(b"\0" * (LINE_BYTES_MAX + 1))
    assert len(bomb) < 16_384
    (tmp_path / "e").write_bytes(bomb)
    with pytest.raises(RecordError, match=rf"e:{len(race_events()) + 1}: the line is longer than 67,108,864 bytes"):
        list(read_events(tmp_path / "e"))


def test_a_frame_that_asks_for_more_memory_than_the_bound_is_refused(tmp_path: Path) -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=29, enable_ldm=True, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    (tmp_path / "e").write_bytes(packer.compress(b"{}\n" * 100_000) + packer.flush())
    with pytest.raises(RecordError, match="damaged behind line 0 .*memory"):
        list(read_events(tmp_path / "e"))


@pytest.mark.parametrize("content", [b"", None])
def test_an_empty_or_missing_log_has_no_events(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "e").write_bytes(content)
    assert list(read_events(tmp_path / "e")) == []


def test_a_plain_log_reads_back_like_a_packed_one_and_counts_where_there_are_both(tmp_path: Path) -> None:
    assert log_of(tmp_path).name == "events.jsonl.zst"
    write(log_of(tmp_path), race_events()[:3])
    plain(tmp_path / "events.jsonl", race_events())
    assert list(read_events(log_of(tmp_path))) == race_events()


def test_a_long_log_is_many_frames_and_a_tenth_of_its_lines(tmp_path: Path) -> None:
    events: list[AnyEvent] = [make_op(index=number) for number in range(3_000)]
    write(tmp_path / "e", events)
    packed = (tmp_path / "e").read_bytes()
    assert packed.count(ZSTD_MAGIC) > 1 and len(packed) < sum(map(len, map(encode_line, events))) / 10
    assert list(read_events(tmp_path / "e")) == events


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
    half = race_events()[: len(race_events()) // 2]
    real, room = os.pwrite, [len(frame(half)) + 60]  # the second frame is torn

    def pwrite(file: int, content: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(file, bytes(content[: room[0]]), offset)
        room[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    log = EventLog(tmp_path / "e", Fingerprint(), flush_s=3600)
    for number, event in enumerate(race_events(), start=1):
        log.emit(event)
        if number == len(half):
            log.flush()
    with pytest.raises(RecordError) as caught:
        log.close()
    assert "No space left on device" in str(caught.value) and str(tmp_path / "e") in str(caught.value)
    assert "run again" in str(caught.value)
    log.emit(make_op())
    log.close()
    assert list(read_events(tmp_path / "e")) == half


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
