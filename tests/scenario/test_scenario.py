"""A scenario file that is wrong is refused with file, table, key, what was expected, and the next step."""

from pathlib import Path

import msgspec
import pytest

from repro.base.errors import ScenarioError
from repro.scenario.schema import bundled_names, find, parse
from repro.scenario.sessions import sessions_of
from tests.tiny import TINY, tiny_text

FAULT = '[[fault]]\nat = "loadback.copy_layer"\n{}\n'
DELAY = 'do = { kind = "delay", us = 5 }'


def refused(text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        parse(text, "s", "s.toml")
    assert caught.value.word.exit_code == 2
    told = str(caught.value)
    assert told.startswith("s.toml")
    return told.removeprefix("s.toml").removeprefix(": ").strip()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (tiny_text(end="[load\n"), "not valid TOML:"),
        ("a = " + "[" * 5000 + "]" * 5000, "not valid TOML: maximum recursion"),
        (TINY.replace("tiny-hicache", "tiny\0"), "not valid TOML: Illegal character"),
        ("", 'the key "format" is missing'),
        (TINY.replace('title = "tiny"', ""), 'the key "title" is missing'),
        (TINY.replace("format = 1", "format = 2"), "format = 2; this version reads format = 1"),
        (TINY.replace("format = 1", 'format = "1"'), 'format = "1"; this version reads format = 1'),
        (TINY.replace('title = "tiny"', "title = 3"), "title = 3; expected text"),
        ('format = 1\ntitle = "t"\nload = 3', "load = 3; expected a table"),
        ('format = 1\ntitle = "t"\nfault = [3]', "fault item 1 = 3; expected a table"),
        ('format = 1\ntitle = "t"\ndefects = "a"', 'defects = "a"; expected an array'),
        ('format = 1\ntitle = "t"\ndefects = [3]', "defects item 1 = 3; expected text"),
    ],
)
def test_a_file_that_is_no_scenario(text: str, told: str) -> None:
    assert refused(text).startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TINY.replace("title", "titel"), 'unknown key titel; nearest: "title"'),
        (tiny_text(end="[lod]\na = 1"), 'unknown key lod; nearest: "load"'),
        (tiny_text(target="rowz = 4"), '[target]: unknown key rowz; nearest: "rows"'),
        (tiny_text(load="session = 2"), '[load]: unknown key session; nearest: "sessions"'),
        (
            tiny_text(load='shape = { kind = "poisson", rte = 1 }'),
            '[load]: unknown key shape.rte; nearest: "rate"',
        ),
        (
            tiny_text(end=FAULT.format(DELAY) + FAULT.format('do = { kind = "delay", uss = 5 }')),
            '[[fault]] 2: unknown key do.uss; nearest: "us"',
        ),
        (
            tiny_text(end=FAULT.format(f"when = {{ probabilty = 1 }}\n{DELAY}")),
            '[[fault]] 1: unknown key when.probabilty; nearest: "probability"',
        ),
        (tiny_text(end="[exercise]\nload_bks = 5"), '[exercise]: unknown floor load_bks; nearest: "load_backs"'),
        (tiny_text(end="[detect]\nsampled = 5"), '[detect]: unknown key sampled; nearest: "pages_sampled"'),
        (tiny_text(end="[limits]\nwall = 5"), '[limits]: unknown key wall; nearest: "wall_s"'),
        (tiny_text(end="[expect]\ndetektors = []"), '[expect]: unknown key detektors; nearest: "detectors"'),
    ],
)
def test_an_unknown_key_of_any_table_brings_the_nearest_name(text: str, told: str) -> None:
    assert refused(text) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TINY.replace("tiny-hicache", "tiny-hichache"), '[target]: config = "tiny-hichache"; nearest: "tiny-hicache"'),
        (TINY.replace('"tiny-hicache"', '["tiny"]'), '[target]: config = ["tiny"]; nearest: "tiny"'),
        (tiny_text(target='cost = "a100"'), '[target]: cost = "a100"; nearest: "h100-glm5"'),
        (
            TINY.replace('"stamps"', '"stamp"'),
            '[target]: numerics = "stamp"; use one of: stamps, tensors (nearest: "stamps")',
        ),
        (
            TINY.replace("[target]", 'defects = ["hicache_late_read"]\n[target]'),
            'defects: "hicache_late_read" is no defect; nearest: "hicache_early_read"',
        ),
        (
            tiny_text(load='shape = { kind = "closd" }'),
            '[load]: shape.kind = "closd"; use one of: closed, poisson, burst, ramp, trace (nearest: "closed")',
        ),
        (tiny_text(load='trace = "synth:codereview"'), '[load]: trace = "synth:codereview"; nearest:'),
        (tiny_text(load='history = "generate"'), '[load]: history = "generate"; use one of: generated, recorded'),
        (
            tiny_text(end='[[fault]]\nat = "loadback.copy_layr"\n' + DELAY),
            '[[fault]] 1: at = "loadback.copy_layr" is no probe point; nearest: "loadback.copy_layer"',
        ),
        (
            tiny_text(end=FAULT.format('do = { kind = "delai", us = 5 }')),
            '[[fault]] 1: do.kind = "delai"; use one of: delay, stall, reorder, drop, duplicate, fail, tear, kill',
        ),
        (
            tiny_text(end='[expect]\ndetectors = ["orderin"]'),
            '[expect]: detectors: "orderin" is no detector; nearest: "ordering"',
        ),
    ],
)
def test_an_unknown_word_brings_the_nearest_one(text: str, told: str) -> None:
    assert refused(text).startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TINY.replace("rows = 4", "rows = 0"), "[target]: rows = 0; must be at least 1 and at most 4,096"),
        (TINY.replace("rows = 4", "rows = true"), "[target]: rows = true; expected a whole number"),
        (
            tiny_text(target="reclaim_host = true"),
            '[target]: reclaim_host goes with write_policy = "write_back", not "write_',
        ),
        (tiny_text(target="storage_pages = -1"), "[target]: storage_pages = -1; must be at least 0 and at most"),
        (tiny_text(target="storage_pages = 9\nhicache = false"), "[target]: storage_pages: the storage tier is below"),
        (tiny_text(target="storage_pages = 9\npd = {}"), "[target]: pd and storage_pages don't go together"),
        (tiny_text(target="storage_pages = 9\nlayersplit = {}"), "[target]: layersplit and storage_pages don't go"),
        (tiny_text(target='storage_folder = "/tmp/x"'), "[target]: storage_folder says where, and storage_pages = 0"),
        (TINY.replace("host_pages = 128", "host_pages = -5"), "[target]: host_pages = -5; must be at least 1"),
        (TINY.replace("= 64", "= 999999999"), "[target]: device_pages = 999999999; must be at least 2 and at most"),
        (TINY.replace("= 64", "= 8"), "[target]: context_tokens = 1024: more than 80% of device_pages = 8"),
        (tiny_text(target="page_tokens = 0"), "[target]: page_tokens = 0; must be at least 1"),
        (tiny_text(target="copy_group_pages = 0"), "[target]: copy_group_pages = 0; must be at least 1"),
        (TINY.replace("sessions = 2", "sessions = 0"), "[load]: sessions = 0; must be at least 1"),
        (TINY.replace("sessions = 2", "sessions = 2.5"), "[load]: sessions = 2.5; expected a whole number"),
        (TINY.replace("sessions = 2", f"sessions = {10**22}"), f"[load]: sessions = {10**22}; must be at least 1"),
        (TINY.replace("sessions = 2", "sessions = 2026-11-24"), "[load]: sessions = 2026-11-24; expected a whole"),
        (tiny_text(load="scale_tokens = 0"), "[load]: scale_tokens = 0.0; must be at least 0.0001 and at most 1"),
        (tiny_text(load="scale_tokens = nan"), "[load]: scale_tokens = nan; must be at least 0.0001"),
        (tiny_text(load="gap_s = [3, 1]"), "[load]: gap_s = [3.0, 1.0]; must be seconds, the shortest and the"),
        (tiny_text(load="gap_s = [nan, 1]"), "[load]: gap_s = [nan, 1.0]; must be seconds"),
        (tiny_text(load="gap_s = 3"), "[load]: gap_s = 3; expected an array"),
        (tiny_text(load="gap_s = [1, 2, 3]"), "[load]: gap_s = [1, 2, 3]; expected an array of 2"),
        (tiny_text(load='shape = "closed"'), '[load]: shape = "closed"; expected a table'),
        (tiny_text(load="shape = {}"), '[load]: the key "shape.kind" is missing'),
        (tiny_text(load='shape = { kind = "poisson" }'), '[load]: the key "shape.rate" is missing'),
        (tiny_text(load='shape = { kind = "poisson", rate = -1 }'), "[load]: shape poisson: rate is -1.0; expected"),
        (tiny_text(load='shape = { kind = "poisson", rate = 1e-300 }'), "[load]: shape: the last session would start"),
        (tiny_text(load='shape = { kind = "trace" }'), '[load]: shape.kind = "trace" needs a recorded trace'),
        (tiny_text(load="trace = []"), "[load]: trace is empty; give a file, a folder, or"),
        (tiny_text(load="trace = [3]"), "[load]: trace item 1 = 3; expected text"),
        (tiny_text(load='trace = ["synth:bug-fix"]'), '[load]: trace: "synth:bug-fix" stands alone, not in an array'),
        (tiny_text(end=FAULT.format("")), '[[fault]] 1: the key "do" is missing'),
        (tiny_text(end=FAULT.format(DELAY.replace("5", '"5"'))), '[[fault]] 1: do.us = "5"; expected a number'),
        (tiny_text(end=FAULT.format(DELAY.replace("5", "nan"))), "[[fault]] 1: do.us = nan; a fault of kind delay"),
        (
            tiny_text(end='[[fault]]\nat = "memory.evict"\ndo = { kind = "evict", tokens = 5 }'),
            "[[fault]] 1: do.tokens = 5; whole pages are evicted, and a page has 64 tokens",
        ),
        (tiny_text(end="[exercise]\nload_backs = -5"), "[exercise]: load_backs = -5; must be at least 0"),
        (tiny_text(end='[exercise]\nload_backs = "a"'), '[exercise]: load_backs = "a"; expected a whole number'),
        (tiny_text(load="requests = 0"), "[load]: requests = 0; must be at least 1"),
        (tiny_text(load="anomaly_retries_max = -1"), "[load]: anomaly_retries_max = -1; must be at least 0"),
        (tiny_text(load='on_anomaly = "retry"'), '[load]: on_anomaly = "retry"; '),
        (tiny_text(end="[acceptance]\nlength_min = 0.5"), "[acceptance]: length_min = 0.5; must be at least 1 "),
        (tiny_text(end="[acceptance]\nrate_max = 1.5"), "[acceptance]: rate_max = 1.5; must be at least 1e-06"),
        (tiny_text(end="[acceptance]\narl_tokens = 5"), "[acceptance]: arl_tokens = 5.0; must be at least 1000"),
        (tiny_text(end="[acceptance]\nrate = 0.5"), '[acceptance]: unknown key rate; nearest: "rate_max"'),
        (tiny_text(end="[detect]\npages_sampled = 0"), "[detect]: pages_sampled = 0; must be at least 1 and at most"),
        (tiny_text(end="[limits]\nwall_s = 0"), "[limits]: wall_s = 0.0; must be at least 1 and at most 604,800"),
        (tiny_text(end="[limits]\nrequests = nan"), "[limits]: requests = nan; expected a whole number"),
    ],
)
def test_an_impossible_value_is_told_with_its_range(text: str, told: str) -> None:
    assert refused(text).startswith(told)


def test_a_load_without_a_turn_is_refused_when_it_is_made() -> None:
    scenario = parse(TINY.replace("prompt_tokens = 500", "prompt_tokens = 100"), "s", "s.toml")
    with pytest.raises(ScenarioError, match=r"prompt_tokens = 100 is too short for a turn; .* give 400 or more"):
        sessions_of(scenario.load, seed=0)


@pytest.mark.parametrize(
    ("requests", "turns"), [(1, [1]), (3, [1, 1, 1]), (4, [2, 1, 1]), (5, [2, 2, 1]), (6, [2, 2, 2]), (99, [2, 2, 2])]
)
def test_turns_are_dealt_out_in_rounds_the_first_first(requests: int, turns: list[int]) -> None:
    load = parse(TINY, "s", "s.toml").load
    whole = msgspec.structs.replace(load, sessions=3, turns=2)
    dealt = sessions_of(msgspec.structs.replace(whole, requests=requests), seed=0)
    assert [len(session.turns) for session in dealt] == turns
    for session, all_turns in zip(dealt, sessions_of(whole, seed=0), strict=False):
        assert session.turns == all_turns.turns[: len(session.turns)]


def test_a_file_that_cannot_be_read_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(TINY.encode() + b"# \xff")
    (tmp_path / "folder.toml").mkdir()
    for name, told in (("latin", "not UTF-8 text"), ("folder", r"\(Is a directory\)"), ("no", r"\(No such file")):
        with pytest.raises(ScenarioError, match=told):
            find(str(tmp_path / f"{name}.toml"))


def test_a_byte_order_mark_is_no_part_of_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf" + TINY.encode())
    assert find(str(tmp_path / "bom.toml")).source == TINY


def test_a_name_that_is_no_scenario_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(TINY)
    with pytest.raises(ScenarioError, match=r'"mine" is no scenario; nearest: ".*".*`repro run \./mine\.toml`'):
        find("mine")


def test_every_bundled_scenario_is_sound() -> None:
    assert "hicache_early_read" in bundled_names()
    for name in bundled_names():
        assert find(name).title
