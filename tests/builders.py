"""Builders of events, requests and whole recorded runs; all has a default, so each argument matters."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from detectors.base import Finding
from detectors.evidence import GarbledSpan, Operation, PagePair, PageRead, WrongToken
from repro.base.probe import (
    Access,
    AnyEvent,
    CacheEvent,
    Edge,
    FaultEvent,
    Op,
    PageEvent,
    PageSet,
    RequestEvent,
    Tokens,
)
from repro.record.folder import RunFolder, RunMeta, utc_stamp
from repro.record.lines import read_lines
from repro.record.log import PLAIN_LOG, log_of
from repro.record.requests import RequestRecord, SentRequest
from repro.record.verdict import RunVerdict
from repro.record.view import Run, open_run
from repro.scenario.schema import find

UTC_START = datetime(2026, 11, 23, 10, 15, 0, tzinfo=UTC)
TOKEN = "AQm7c1T0pQz9kXwVtR3sLb8uYh2nGd5e"


def make_op(stream: str = "compute", index: int = 0, **changes: Any) -> Op:
    fields: dict[str, Any] = {
        "name": "attend",
        "layer": 2,
        "step": 7,
        "site": "serve/forward.py:120",
        "host": 10 + index,
        "enqueued_us": 100.0 * index,
        "start_us": 100.0 * index + 20,
        "end_us": 100.0 * index + 90,
    }
    return Op(stream=stream, index=index, **(fields | changes))


def make_request(request: str = "s0-t1", **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "session": request.partition("-")[0],
        "turn": 1,
        "due_us": 1000.0,
        "sent_us": 1001.0,
        "first_token_us": 51_000.0,
        "finished_us": 151_000.0,
        "prompt_tokens": 3000,
        "completion_tokens": 5,
        "finish": "stop",
        "text": "def read(path):\n    return path.read_text()\n",
        "tokens": [11, 12, 13, 14, 15],
        "logprobs": [-0.1, -0.2, -0.1, -0.3, -0.1],
        "oracle": "same",
    }
    return RequestRecord(request=request, **(fields | changes))


def sent_request(request: str, **changes: Any) -> SentRequest:
    """Return a request of a server at a URL as the client saw it: no token ids."""
    return SentRequest(request, request.partition(":")[0], turn=0, finish="stop", **changes)


def race_finding(**changes: Any) -> Finding:
    return Finding(**(_RACE | {"evidence": race_evidence()} | changes))


def race_evidence(**changes: Any) -> PagePair:
    evidence = PagePair(
        first=Operation("load", 5, "loadback.copy_layer", 2, 3, "serve/kv/tiers.py:208", None, 500.0, 1400.0, True),
        second=Operation("compute", 7, "index.score", 2, 7, "serve/forward.py:88", None, 720.0, 790.0, False),
        page=12,
        pages=1,
        tier="device",
        component="index",
        layer=2,
        missing_edge="compute waits for no event that load records behind loadback.copy_layer (layer 2)",
        inverted=False,
        requests=("s1-t1",),
        history=("   10.0 us  alloc  by load:s1-t1", "  500.0 us  write  by load#5 loadback.copy_layer"),
    )
    return replace(evidence, **changes)


_RACE: dict[str, Any] = {
    "detector": "ordering",
    "layer": "ordering",
    "claim": "loadback.copy_layer on stream load writes and index.score on stream compute reads "
    "the index rows of page 12, layer 2; nothing orders them",
    "signature": "ordering: loadback.copy_layer write x index.score read of device index",
    "request": "s1-t1",
    "at_us": 720.0,
    "count": 14,
}


def canary_finding(pages: int = 3, **changes: Any) -> Finding:
    evidence = PageRead("compute", 7, "index.score", "", "index", 2, "s1-t1", 640, 128, pages, "")
    fields: dict[str, Any] = {
        "detector": "canary",
        "layer": "canary",
        "claim": "s1-t1: index.score, layer 2, read 640 index rows that are not its own prefix",
        "signature": "canary: index.score reads index rows: foreign bytes",
        "request": "s1-t1",
        "at_us": 790.0,
        "count": 6,
        "evidence": evidence,
    }
    return Finding(**(fields | changes))


def divergence_finding(
    *,
    got: str = "def readceivedceivedceived\x00",
    clean: str = "def read(path):\n    return path.read_text()\n",
    first_difference: int = 2,
    **changes: Any,
) -> Finding:
    evidence = WrongToken("s1-t1", first_difference, 7.5, got, clean)
    fields: dict[str, Any] = {
        "detector": "divergence",
        "layer": "divergence",
        "claim": "s1-t1: token 2 differs from the clean decode, whose best token led by 7.5",
        "signature": "divergence: a clear token differs from the clean decode",
        "request": "s1-t1",
        "at_us": 60_000.0,
        "evidence": evidence,
    }
    return Finding(**(fields | changes))


def text_finding(detector: str = "repetition", excerpt: str = "ceivedceivedceived", **changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "layer": "text",
        "claim": f"s1-t1: {detector}: 'ceived' 3 times to the end of the answer",
        "signature": f"{detector}: loop",
        "request": "s1-t1",
        "at_us": 61_000.0,
        "evidence": GarbledSpan(26, excerpt, 0, 69.0),
    }
    return Finding(detector=detector, **(fields | changes))


def race_events() -> list[AnyEvent]:
    """Return a load-back that is still copying page 12 when the indexer reads it."""
    events: list[AnyEvent] = [
        PageSet(1, (10, 14)),
        RequestEvent("received", "s1-t1", 5.0, {"prompt_tokens": 3000}),
        RequestEvent("admitted", "s1-t1", 8.0, {"row": 1, "device_hit": 0, "host_hit": 256}),
        PageEvent("alloc", "device", 1, "load:s1-t1", 3, 10.0),
        CacheEvent("load_back", 256, 12.0, "s1-t1"),
        FaultEvent("loadback.copy_layer.delay", "loadback.copy_layer", 13.0, 800.0, ("load", 5), "load"),
    ]
    for index in range(7):
        read = Access(False, "device", "index", index % 3, 1, "s1-t1")
        events.append(make_op("compute", index, accesses=(read,), requests=("s1-t1",)))
    events.append(
        make_op(
            "compute", 7, name="index.score", start_us=720.0, end_us=790.0, requests=("s1-t1",),
            accesses=(Access(False, "device", "index", 2, 1, "s1-t1"),),
        )
    )  # fmt: skip
    copies = (Access(True, "device", "index", 2, 1, ""), Access(False, "host", "index", 2, 1, ""))
    events.append(
        make_op(
            "load", 5, name="loadback.copy_layer", start_us=500.0, end_us=1400.0, accesses=copies,
            after=(Edge(("compute", 0), "load.start"),), site="serve/kv/tiers.py:208",
        )
    )  # fmt: skip
    events.append(RequestEvent("first_token", "s1-t1", 51_000.0))
    events.append(Tokens("s1-t1", (11, 12), (-0.1, -0.2), 51_000.0))
    events.append(RequestEvent("finished", "s1-t1", 151_000.0, {"tokens": 5}))
    return events


def race_requests(healthy: int = 11) -> list[RequestRecord]:
    """Return healthy requests and one that raced, diverged and visibly loops."""
    victim = make_request(
        "s1-t1", cached_host_tokens=256, raced=True, corrupted=True, oracle="diverged", visible=True,
        text="def readceivedceivedceived\x00", clean_text="def read(path):\n    return path.read_text()\n",
        tokens=[11, 12, 99, 99, 99], clean_tokens=[11, 12, 13, 14, 15], first_difference=2, logit_gap=7.5,
        detectors=["repetition"],
    )  # fmt: skip
    others = [make_request(f"s{2 + number % 4}-t{number}", turn=number) for number in range(healthy)]
    return [victim, *others]


def make_verdict(**changes: Any) -> RunVerdict:
    """Return a verdict; the changes are as its JSON object has them."""
    verdict: dict[str, object] = {
        "verdict": "anomaly",
        "scenario": "hicache_early_read",
        "seed": 7,
        "requests": 12,
        "findings": {"ordering": 14, "canary": 6, "divergence": 1, "repetition": 1},
        "funnel": {
            "requests": 12, "raced": 1, "corrupted": 1, "poisoned": 0,
            "diverged": 1, "visible": 1, "model_own": 0,
        },
        "faults": {"loadback.copy_layer.delay": {"armed": 1, "reached": 40, "fired": 9, "reordered": 7}},
        "exercised": {
            "load_backs": 22, "host_hit_tokens": 9_216, "evictions": 31, "reads_overlapping_load": 9,
        },
        "detectors": {
            "ordering": "anomaly", "canary": "anomaly", "divergence": "anomaly",
            "garbled": "clean", "repetition": "anomaly", "acceptance": "not_applicable",
        },
        "fingerprint": "5f" * 32,
        "token": TOKEN,
        "run_dir": "runs/hicache_early_read/20261123T101500Z-7",
        "report": "runs/hicache_early_read/20261123T101500Z-7/report.html",
    }  # fmt: skip
    return msgspec.convert(verdict | changes, RunVerdict)


def unpacked_log(folder: Path) -> Path:
    """Unpack a run's log and return it as plain JSON lines, which then count: a test can change them."""
    lines = b"".join(line + b"\n" for _, line in read_lines(log_of(folder)))
    (folder / PLAIN_LOG).write_bytes(lines)
    return folder / PLAIN_LOG


def make_folder(root: Path, scenario: str = "hicache_early_read", seed: int = 7, **options: Any) -> RunFolder:
    options = {"scenario_toml": find("hicache_early_read").source, "versions": {"repro": "0.1.0"}} | options
    meta = {key: options.pop(key) for key in ("versions", "config") if key in options}
    return RunFolder.create(root, RunMeta(scenario, seed, utc_stamp(UTC_START), **meta), **options)


def make_run(
    root: Path,
    *,
    events: Sequence[AnyEvent] | None = None,
    requests: Sequence[RequestRecord] | None = None,
    findings: Sequence[Finding] | None = None,
    verdict: RunVerdict | None = None,
    **options: Any,
) -> Run:
    """Write a finished run into `root` and return it opened; by default one with the HiCache race."""
    folder = make_folder(root, **options)
    for event in race_events() if events is None else events:
        folder.emit(event)
    for request in race_requests() if requests is None else requests:
        folder.add_request(request)
    found = [race_finding(), canary_finding(), divergence_finding(), text_finding()]
    for finding in found if findings is None else findings:
        folder.add_finding(finding)
    folder.close("finished", verdict=make_verdict() if verdict is None else verdict)
    return open_run(folder.path)
