"""A server at a URL, from `repro calibrate` to the verdict of `repro replay`: over real HTTP, by the command line."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pandas
import pytest
from typer.testing import CliRunner, Result

from detectors.answers.clean_cache import ORACLES, Calibration
from reports.run.story import replay_command
from reports.run.summary import summarise
from repro.cli import app
from repro.load.secret import EXCERPT_CHARS
from repro.record.view import open_run
from repro.scenario.schema import LoadSpec
from repro.scenario.sessions import sessions_of
from repro.trace.format import Message, Session, Turn
from repro.trace.store import write_sessions
from tests.load.closed_stub import MODEL, ClosedStub
from tests.serve.server.builders import over_http
from tests.tiny import SERVER_LOST

KEY = "sk-not-to-be-kept-4711"
SECRET = "orchid-lighthouse-quarter"  # a word of a prompt
APIS = {"sglang": "generate", "vllm": "chat"}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@contextmanager
def served(stub: ClosedStub) -> Iterator[str]:
    with over_http(stub) as url:  # type: ignore[arg-type]
        yield url


def repro(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet"])


def told(result: Result) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(result.stdout)
    return decoded


def trace(folder: Path, sessions: int = 4) -> Path:
    """Sessions of one turn; the request of session n is `s<n>:0`."""
    path = folder / "sessions.jsonl"
    words = [f"{SECRET} word{number} " * 5 for number in range(sessions)]
    write_sessions(path, [Session(f"s{n}", (Turn((Message("user", text),)),)) for n, text in enumerate(words)])
    return path


def calibrated(folder: Path, scores: Sequence[float] = (0.0,) * 999, api: str = "generate", model: str = MODEL) -> Path:
    path = folder / "calibration.json"
    path.write_bytes(msgspec.json.encode(Calibration(model, api, *[tuple(scores)] * len(ORACLES))))
    return path


def replay(folder: Path, url: str, calibration: Path | None, *more: object, speaks: str = "sglang") -> Result:
    checked = () if calibration is None else ("--calibration", calibration)
    return repro(
        "replay", trace(folder), "--target", url, "--api", APIS[speaks], "--answer-tokens", 48, *checked, "--json",
        "--runs", folder / "runs", *more,
    )  # fmt: skip


@pytest.mark.parametrize("speaks", ["sglang", "vllm"])
@pytest.mark.parametrize("corrupt", [False, True])
def test_a_corrupted_answer_is_found_by_all_oracles_and_clean_ones_are_not(
    speaks: str, corrupt: bool, tmp_path: Path
) -> None:
    stub = ClosedStub(speaks)
    with served(stub) as url:
        out = tmp_path / "calibration.json"
        result = repro(
            "calibrate", "--target", url, "--api", APIS[speaks], "--out", out, "--answers", 20, "--prompt-tokens", 400,
            "--answer-tokens", 48, "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        clean = {"answers": 20, "false_alarm_rate_min": 1 / 21, "largest_nats": 0.0}
        assert told(result)["oracles"] == dict.fromkeys(ORACLES, clean)
        if corrupt:
            stub.corrupts["s2:0"] = 9
            stub.doubts["s2:0"] = 0.3
        result = replay(tmp_path, url, out, "--false-alarm-rate", 0.05, speaks=speaks)
    assert result.exit_code == (1 if corrupt else 0), result.output
    answers = {name: told(result)["detectors"][name] for name in ORACLES}
    assert set(answers.values()) == {"anomaly" if corrupt else "clean"}
    assert told(result)["funnel"]["diverged"] == int(corrupt)
    stages = {stage.key: stage.count for stage in summarise(open_run(Path(told(result)["run_dir"]))).funnel}
    assert (stages["diverged"], stages["raced"]) == (int(corrupt), None)


@pytest.mark.parametrize("speaks", ["sglang", "vllm"])
def test_wrong_bytes_that_changed_no_token_are_found_by_how_sure_the_server_was(speaks: str, tmp_path: Path) -> None:
    stub = ClosedStub(speaks)
    stub.doubts["s1:0"] = 0.3
    with served(stub) as url:
        result = replay(tmp_path, url, calibrated(tmp_path, api=APIS[speaks]), speaks=speaks)
    assert result.exit_code == 1, result.output
    answers = {name: told(result)["detectors"][name] for name in ORACLES}
    assert answers == {"rerun": "clean", "surprisal": "clean", "confidence": "anomaly"}
    assert told(result)["funnel"]["diverged"] == 0, "its tokens are the clean ones"
    [found] = map(json.loads, (Path(told(result)["run_dir"]) / "findings.jsonl").read_text().splitlines())
    assert found["request"] == "s1:0" and "tokens 0 to 31 of the answer" in found["claim"]


def test_what_clean_answers_do_too_convicts_nobody(tmp_path: Path) -> None:
    stub = ClosedStub()
    stub.corrupts["s2:0"] = 9
    with served(stub) as url:
        result = replay(tmp_path, url, calibrated(tmp_path, scores=(0.0,) * 900 + (99.0,) * 99))
    assert (result.exit_code, told(result)["verdict"]) == (0, "clean")
    assert told(result)["oracle"]["differing"] == 1, "it is told, and lies within what was calibrated"


def test_a_server_that_goes_away_while_its_answers_are_checked_is_failed(tmp_path: Path) -> None:
    stub = ClosedStub()
    stub.dies_after = 1
    with served(stub) as url:
        result = replay(tmp_path, url, calibrated(tmp_path))
    assert (result.exit_code, told(result)["verdict"]) == (4, "failed")
    assert "while its answers were checked" in str(told(result)["why"])


def test_a_target_without_log_probabilities_cannot_be_calibrated_and_leaves_a_replay_inconclusive(
    tmp_path: Path,
) -> None:
    with served(ClosedStub(tells=False)) as url:
        out = tmp_path / "new.json"
        result = repro("calibrate", "--target", url, "--api", "generate", "--out", out, "--answers", 3)
        assert result.exit_code == 4 and "tells no log-probabilities" in result.stderr and not out.exists()
        result = replay(tmp_path, url, calibrated(tmp_path))
    assert (result.exit_code, told(result)["verdict"]) == (5, "inconclusive")
    assert "tells no log-probabilities" in str(told(result)["why"])


def test_a_budget_that_is_too_small_for_one_answer_is_inconclusive(tmp_path: Path) -> None:
    with served(ClosedStub()) as url:
        result = replay(tmp_path, url, calibrated(tmp_path), "--oracle-tokens", 5)
    assert result.exit_code == 5 and "--oracle-tokens" in str(told(result)["why"])


def test_a_cache_that_may_have_been_used_acquits_nobody(tmp_path: Path) -> None:
    stub = ClosedStub("vllm", flushes=False, counts=False)
    with served(stub) as url:
        result = replay(tmp_path, url, calibrated(tmp_path, api="chat"), speaks="vllm")
        assert result.exit_code == 5 and "count of cached tokens" in str(told(result)["why"])
        stub.corrupts["s1:0"] = 3
        assert replay(tmp_path, url, calibrated(tmp_path, api="chat"), speaks="vllm").exit_code == 1


@pytest.mark.parametrize(
    ("scores", "api", "model", "rate", "wrong"),
    [
        ((0.0,) * 99, "generate", MODEL, 0.001, "can vouch for 0.01 at the least; `repro calibrate --answers 999`"),
        ((0.0,) * 999, "chat", MODEL, 0.001, "was made with --api chat"),
        ((0.0,) * 999, "generate", "another", 0.001, "is of the model another, and the target serves closed-stub"),
        ((), "generate", MODEL, 0.001, "holds no clean answer"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(
    scores: tuple[float, ...], api: str, model: str, rate: float, wrong: str, tmp_path: Path
) -> None:
    with served(ClosedStub()) as url:
        result = replay(tmp_path, url, calibrated(tmp_path, scores, api, model), "--false-alarm-rate", rate)
    assert result.exit_code == 2 and wrong in told(result)["error"]


@pytest.mark.parametrize(("learned", "noted"), [(47, True), (48, False), (0, False)])
def test_answers_longer_than_the_calibrated_ones_are_noted(learned: int, noted: bool, tmp_path: Path) -> None:
    path = calibrated(tmp_path)
    calibration = msgspec.json.decode(path.read_bytes(), type=Calibration)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(calibration, answer_tokens=learned)))
    with served(ClosedStub()) as url:
        result = CliRunner().invoke(
            app, ["replay", str(trace(tmp_path)), "--target", url, "--api", "generate", "--answer-tokens", "48",
                  "--calibration", str(path), "--runs", str(tmp_path / "runs")],
        )  # fmt: skip
    assert result.exit_code == 0 and ("calibrate --answer-tokens 48" in " ".join(result.stderr.split())) is noted


def test_a_calibration_needs_a_server_and_must_be_one(tmp_path: Path) -> None:
    result = repro("replay", trace(tmp_path), "--calibration", calibrated(tmp_path), "--json")
    assert result.exit_code == 2 and "needs a server" in told(result)["error"]
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    result = replay(tmp_path, SERVER_LOST, wrong)
    assert result.exit_code == 2 and "`repro calibrate` makes one" in told(result)["error"]


def test_nobody_there_is_said(tmp_path: Path) -> None:
    result = repro("calibrate", "--target", SERVER_LOST, "--out", tmp_path / "new.json", "--answers", 20)
    assert result.exit_code == 4 and "Is the server running there?" in result.stderr


def everything_in(folder: Path) -> str:
    """All that a run has kept, tables read as the texts they hold."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            texts.append(pandas.read_parquet(path).to_json() or "")
        elif path.is_file():
            texts.append(path.read_bytes().decode("utf-8", "replace"))
    return "\n".join(texts)


def test_a_wrong_key_is_said_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with served(ClosedStub(key="another")) as url:
        result = replay(tmp_path, url, None)
    assert result.exit_code == 4 and "set OPENAI_API_KEY" in told(result)["error"]
    assert KEY not in result.output + result.stderr + everything_in(tmp_path)


def test_a_reply_that_is_none_is_told_without_the_key_even_where_the_excerpt_ends_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub = ClosedStub(key=KEY)
    stub.babbles = "x" * (EXCERPT_CHARS - 10) + KEY
    with served(stub) as url:
        result = replay(tmp_path, url, None)
    assert result.exit_code == 4 and "not what the API says" in str(told(result)["why"])
    assert KEY[:6] not in result.output + result.stderr + everything_in(tmp_path)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-\u00e9"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    result = replay(tmp_path, SERVER_LOST, None)
    assert result.exit_code == 2 and "no HTTP header may" in told(result)["error"]
    assert "sk-" not in result.output + result.stderr


def test_the_key_is_sent_and_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub = ClosedStub(key=KEY)
    stub.corrupts["s2:0"] = 9
    with served(stub) as url:
        out = tmp_path / "learned.json"
        assert repro("calibrate", "--target", url, "--api", "generate", "--out", out, "--answers", 3).exit_code == 0
        result = replay(tmp_path, url, calibrated(tmp_path))
    assert result.exit_code == 1
    kept = everything_in(tmp_path)
    assert SECRET in kept and KEY not in kept + result.output + result.stderr


def test_a_url_with_a_password_is_refused_for_it_would_be_kept(tmp_path: Path) -> None:
    result = replay(tmp_path, "http://me:secret@127.0.0.1:9", None)
    assert result.exit_code == 2 and "OPENAI_API_KEY" in told(result)["error"]
    assert "secret" not in result.output + result.stderr


@pytest.mark.parametrize("redact", [False, True])
def test_texts_of_requests_and_answers_stay_out_of_a_redacted_record(redact: bool, tmp_path: Path) -> None:
    stub = ClosedStub()
    stub.corrupts["s2:0"] = 9
    with served(stub) as url:
        result = replay(tmp_path, url, calibrated(tmp_path), *(["--redact"] if redact else []))
    run = Path(told(result)["run_dir"])
    again = replay_command(summarise(open_run(run)))
    assert "--calibration" in again and ("--redact" in again) is redact
    kept = everything_in(run)
    found = list(map(json.loads, (run / "findings.jsonl").read_text().splitlines()))
    scores = [finding["evidence"]["score_nats"] for finding in found if finding["detector"] == "surprisal"]
    assert result.exit_code == 1 and scores[0] > 5
    answered = " ".join(f"w{number}" for number in range(64))
    assert any(f"{word} {other}" in kept for word, other in _neighbours(answered)) is not redact
    assert ("[redacted:" in kept) is redact


@pytest.mark.parametrize("redact", [False, True])
@pytest.mark.parametrize("refuses", ["refuses", "refuses_checks"])
def test_what_a_server_quotes_when_it_refuses_stays_out_of_a_redacted_record(
    refuses: str, redact: bool, tmp_path: Path
) -> None:
    stub = ClosedStub()
    setattr(stub, refuses, True)
    with served(stub) as url:
        result = replay(tmp_path, url, calibrated(tmp_path), *(["--redact"] if redact else []))
    assert result.exit_code == (4 if refuses == "refuses" else 5), result.output
    kept = everything_in(Path(told(result)["run_dir"])) + result.output
    assert (SECRET in kept) is not redact


@pytest.mark.parametrize("redact", [False, True])
def test_answers_of_tokens_that_show_no_text_are_judged_redacted_or_not(redact: bool, tmp_path: Path) -> None:
    stub = ClosedStub()
    stub.shows = False
    with served(stub) as url:
        result = replay(tmp_path, url, None, *(["--redact"] if redact else []))
    assert (result.exit_code, told(result)["verdict"]) == (0, "clean"), result.output


def test_a_redacted_record_of_the_bundled_stack_is_refused_for_its_events_hold_every_token(tmp_path: Path) -> None:
    result = repro("replay", trace(tmp_path), "--redact", "--json", "--runs", tmp_path / "runs")
    assert result.exit_code == 2 and "--redact needs a server" in told(result)["error"]
    assert not (tmp_path / "runs").exists()


def _neighbours(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of words of which an answer has some: all of them."""
    words = text.split()
    yield from ((word, other) for word in words for other in words)


def test_a_scenario_is_served_with_its_own_defect_only() -> None:
    result = CliRunner().invoke(app, ["serve", "--scenario", "hicache_early_read", "--defect", "hicache_load_war"])
    assert result.exit_code == 2 and "--scenario brings its own defect" in result.stderr


def test_sessions_without_a_nonce_get_one_of_their_own_behind_the_system_prompt(tmp_path: Path) -> None:
    turns = (Turn((Message("system", "be brief"), Message("user", "hi"))),)
    write_sessions(tmp_path / "s.jsonl", [Session("a", turns), Session("b", turns), Session("c", turns, nonce="mine")])
    spec = LoadSpec(trace=(str(tmp_path / "s.jsonl"),), nonces=True)
    one, other, kept = sessions_of(spec, seed=1)
    assert one.nonce and other.nonce and one.nonce != other.nonce and kept.nonce == "mine"
    assert [message.content for message in one.turns[0].messages] == ["be brief", f"Ticket {one.nonce}.\nhi"]
    assert kept.turns == turns and sessions_of(spec, seed=1)[0] == one
