"""The driver in virtual time: order, concurrency, faults, retries, interruption; a run repeats itself."""

import asyncio
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from repro.base.clock import run_virtual
from repro.base.errors import RecordError, UsageError
from repro.base.probe import Decision, Event
from repro.load.asgi import App, AsgiStreamTransport
from repro.load.client import ChatClient, open_client
from repro.load.driver import LOST_AFTER_FAILURES, drive
from repro.load.faults import (
    Abort,
    ClientAction,
    ClientPoint,
    Disconnect,
    HoldForBurst,
    LetOthersPass,
    SlowReader,
    faults_of,
)
from repro.load.listener import CountsDetector, LoadListener, OnlineFinding, Progress, TextDetector
from repro.load.plan import LoadPlan, LoadResult
from repro.load.session import LENGTH_NUMBER, LENGTH_WORDS, request_id
from repro.load.shapes import Burst, Poisson, Recorded
from repro.record.requests import SentRequest, SpecCounts
from repro.serve.server.errors import ApiError
from repro.serve.server.intake import answer_tokens_max
from repro.trace.format import Message, Session, ToolCall, Turn
from repro.trace.load import load_traces
from tests.idle import IdleWorld
from tests.load.stubs import ChatStub, Receive, Send, meta, reply, sending

PUBLISHED = Path(__file__).parents[3] / "shared" / "traces"
REPLY = Message("assistant", "recorded answer", (ToolCall("run", {"cmd": "ls"}),))


def session(name: str, turns: int = 2, *, text: str = "do it", tokens: int = 4, **changes: Any) -> Session:
    made = tuple(
        Turn(
            messages=(Message("tool" if index else "user", f"{text} {index}"),),
            reply=REPLY,
            max_tokens=tokens,
            gap_s=1.0 if index else 0.0,
        )
        for index in range(turns)
    )
    return msgspec.structs.replace(Session(id=name, turns=made), **changes)


class Seen(LoadListener):
    """Everything that a load delivers; `texts` and `counts` make its detectors."""

    def __init__(
        self,
        texts: Callable[[str, str], list[TextDetector]] = lambda request, prompt: [],
        counts: Callable[[str], list[CountsDetector]] = lambda request: [],
    ) -> None:
        self.records: list[SentRequest] = []
        self.findings: list[tuple[str, str]] = []
        self.convicting: dict[str, list[str]] = {}
        self.progress: list[Progress] = []
        self.texts, self.counts = texts, counts

    def text_detectors(self, request: str, prompt: str) -> list[TextDetector]:
        return self.texts(request, prompt)

    def counts_detectors(self, request: str) -> list[CountsDetector]:
        return self.counts(request)

    def on_finding(self, request: str, finding: OnlineFinding) -> None:
        self.findings.append((request, finding.claim))
        self.convicting.setdefault(request, []).append(finding.detector)

    def on_request(self, request: SentRequest) -> None:
        self.records.append(request)

    def on_progress(self, snapshot: Progress) -> None:
        self.progress.append(snapshot)

    def of(self, session: str) -> list[SentRequest]:
        return [record for record in self.records if record.session == session]


async def driven(sessions: Sequence[Session], app: App, plan: LoadPlan, *listeners: LoadListener) -> LoadResult:
    client = open_client("http://stub", transport=AsgiStreamTransport(app))
    async with client.http:
        return await drive(sessions, client, plan, *listeners)


def run(
    sessions: Sequence[Session], plan: LoadPlan, app: App | None = None, seen: Seen | None = None
) -> tuple[LoadResult, Seen]:
    seen = seen or Seen()
    return run_virtual(driven(sessions, app or ChatStub(), plan, seen), IdleWorld()), seen


def faults_at(**actions: ClientAction) -> Callable[[ClientPoint, str], ClientAction | None]:
    """Each action once per session, at the point of its name."""
    left = {f"client.{name}": action for name, action in actions.items()}
    asked: dict[tuple[str, str], int] = {}

    def ask(point: ClientPoint, actor: str) -> ClientAction | None:
        asked[point, actor] = asked.get((point, actor), 0) + 1
        return left.get(point) if asked[point, actor] == 1 else None

    return ask


def test_turns_follow_each_other_after_their_gaps_and_are_recorded_whole() -> None:
    stub = ChatStub(token_s=0.01, prefill_s=0.05)
    result, seen = run([session("a", 3)], LoadPlan(), stub)
    assert [record.request for record in seen.records] == ["a:0", "a:1", "a:2"]
    first, second, _ = seen.records
    assert (first.text, first.finish, first.error, first.expected) == (
        "w0 w1 w2 w3 ",
        "stop",
        "",
        "recorded answer",
    )
    assert (first.completion_tokens, first.prompt_tokens) == (4, len("do it 0") // 4)
    assert second.due_us - first.finished_us == pytest.approx(1e6)
    assert second.sent_us == pytest.approx(second.due_us)
    assert first.first_token_us - first.sent_us == pytest.approx(50_000)
    assert (result.requests, result.answered, result.sessions_done, result.completion_tokens) == (3, 3, 1, 12)
    assert seen.progress[-1].requests_done == 3 and seen.progress[-1].sessions_active == 0


@pytest.mark.parametrize("history", ["generated", "recorded"])
def test_the_history_is_what_the_plan_says(history: Any) -> None:
    stub = ChatStub()
    run([session("a", 2)], LoadPlan(history=history), stub)
    user, said, tool = stub.bodies[1]["messages"]
    assert (user["content"], tool["role"], tool["content"]) == ("do it 0", "tool", "do it 1")
    if history == "generated":
        assert said["content"] == "w0 w1 w2 w3 " and "tool_calls" not in said
    else:
        assert said["content"] == "recorded answer"
        assert said["tool_calls"][0]["id"] == tool["tool_call_id"]


def test_never_more_sessions_at_once_than_planned() -> None:
    stub = ChatStub()
    result, _ = run([session(f"s{number}", 2) for number in range(40)], LoadPlan(concurrency=7), stub)
    assert result.sessions_done == 40 and stub.active_max == 7


def test_two_runs_are_the_same_run() -> None:
    def once() -> list[bytes]:
        sessions = [session(f"s{number}", 3) for number in range(30)]
        sessions += [session(f"c{number}", 2, parent=f"s{number}#1") for number in range(10)]
        plan = LoadPlan(
            concurrency=9,
            shape=Poisson(rate=20),
            seed=3,
            faults=faults_at(abort=Abort(after_s=0.07), order=LetOthersPass(2), disconnect=Disconnect(after_tokens=2)),
        )
        _, seen = run(sessions, plan, ChatStub(token_s=0.013))
        return [msgspec.json.encode(record) for record in seen.records]

    first = once()
    assert len(first) > 110 and first == once()


@pytest.mark.parametrize("virtual", [True, False])
def test_traces_are_kept_out_of_the_collectors_walks_in_real_time_only(virtual: bool) -> None:
    frozen: list[int] = []

    class Counting(ChatStub):
        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            frozen.append(gc.get_freeze_count())
            await super().__call__(scope, receive, send)

    load = driven([session("a", 1)], Counting(), LoadPlan())
    run_virtual(load, IdleWorld()) if virtual else asyncio.run(load)
    assert [count > 0 for count in frozen] == [not virtual]
    assert gc.get_freeze_count() == 0


def test_a_closed_load_is_never_late_for_want_of_a_place() -> None:
    _, seen = run([session(name, 1) for name in "abc"], LoadPlan(concurrency=1))
    assert [record.sent_us for record in seen.records] == [record.due_us for record in seen.records]
    assert seen.records[2].due_us >= seen.records[1].finished_us > 0


def test_open_shapes_start_sessions_when_they_say_and_due_tells_when_places_are_short() -> None:
    sessions = [session(f"s{number}", 1, start_s=2.0 * number, tokens=100) for number in range(6)]
    _, seen = run(sessions, LoadPlan(shape=Recorded(), time_scale=0.5))
    assert [record.due_us / 1e6 for record in seen.records] == pytest.approx([0, 1, 2, 3, 4, 5])
    assert all(record.sent_us == pytest.approx(record.due_us) for record in seen.records)
    _, seen = run(sessions, LoadPlan(shape=Burst(size=3, period_s=10), concurrency=1))
    late = [round((record.sent_us - record.due_us) / 1e6, 2) for record in seen.records]
    assert late[0] == late[3] == 0 and 0 < late[1] < late[2]


def test_sub_agents_start_when_their_turn_is_answered_and_the_parent_goes_on() -> None:
    child = session("kid", 2, parent="a#1")
    child = msgspec.structs.replace(
        child, turns=(msgspec.structs.replace(child.turns[0], gap_s=0.25), *child.turns[1:])
    )
    _, seen = run([child, session("a", 4)], LoadPlan(concurrency=5))
    started_us = seen.of("kid")[0].sent_us
    assert started_us == pytest.approx(seen.of("a")[1].finished_us + 0.25e6)
    assert len(seen.of("kid")) == 2 and len(seen.of("a")) == 4
    assert seen.of("a")[2].sent_us < seen.of("kid")[1].finished_us


def test_a_child_whose_parent_is_not_replayed_starts_by_itself() -> None:
    result, _ = run([session("kid", 1, parent="gone#3")], LoadPlan())
    assert result.sessions_done == 1


def test_recorded_cancellations_abort_at_their_token_and_the_session_goes_on_with_what_there_is() -> None:
    stub = ChatStub()
    made = session("a", 2, tokens=50)
    made = msgspec.structs.replace(
        made, turns=(msgspec.structs.replace(made.turns[0], abort_after_tokens=3), made.turns[1])
    )
    result, seen = run([made], LoadPlan(), stub)
    assert [record.finish for record in seen.records] == ["abort", "stop"]
    assert seen.records[0].text == "w0 w1 w2 " and seen.records[0].completion_tokens == 3
    assert stub.disconnects[0][0] == "a:0"
    assert stub.bodies[1]["messages"][1]["content"] == "w0 w1 w2 "
    assert (result.aborted, result.answered) == (1, 1)


@pytest.mark.parametrize(
    "fault", [Disconnect(after_tokens=2, retry_after_s=0.5), Disconnect(after_s=0.07, retry_after_s=0.5)]
)
def test_a_disconnected_client_comes_back_and_asks_the_same_again(fault: Disconnect) -> None:
    stub = ChatStub(token_s=0.01, prefill_s=0.05)
    _, seen = run([session("a", 1, tokens=9)], LoadPlan(faults=faults_at(disconnect=fault)), stub)
    assert [(record.request, record.attempt, record.finish) for record in seen.records] == [
        ("a:0", 0, "disconnect"),
        ("a:0.1", 1, "stop"),
    ]
    assert stub.bodies[0] == stub.bodies[1]
    assert seen.records[1].sent_us - seen.records[0].finished_us == pytest.approx(0.5e6)


def test_a_connection_that_is_cut_every_time_is_given_up_and_the_session_goes_on() -> None:
    def always(point: ClientPoint, actor: str) -> ClientAction | None:
        return Disconnect(after_tokens=1) if point == "client.disconnect" else None

    _, seen = run([session("a", 2)], LoadPlan(faults=always))
    assert [(record.turn, record.finish) for record in seen.records] == [(0, "disconnect")] * 9 + [
        (1, "disconnect")
    ] * 9


def test_the_earlier_of_abort_and_disconnect_wins() -> None:
    both = faults_at(abort=Abort(after_s=0.06), disconnect=Disconnect(after_s=0.09))
    _, seen = run([session("a", 1, tokens=20)], LoadPlan(faults=both))
    assert [record.finish for record in seen.records] == ["abort"]
    both = faults_at(abort=Abort(after_s=0.09), disconnect=Disconnect(after_s=0.06))
    _, seen = run([session("a", 1, tokens=20)], LoadPlan(faults=both))
    assert [record.finish for record in seen.records] == ["disconnect", "stop"]


def test_a_slow_reader_takes_longer_and_loses_nothing() -> None:
    _, fast = run([session("a", 1, tokens=8)], LoadPlan())
    _, slow = run([session("a", 1, tokens=8)], LoadPlan(faults=faults_at(slow_reader=SlowReader(0.5, 2))))
    assert slow.records[0].text == fast.records[0].text
    assert slow.records[0].finished_us - fast.records[0].finished_us > 1.5e6


def test_held_requests_arrive_at_one_instant() -> None:
    stub = ChatStub()
    sessions = [session(f"s{number}", 1, start_s=0.1 * number) for number in range(5)]
    run(sessions, LoadPlan(shape=Recorded(), faults=faults_at(burst=HoldForBurst(3.0))), stub)
    assert {round(time, 6) for time, _ in stub.arrivals} == {3.0}


def test_a_session_lets_others_pass_before_its_next_turn() -> None:
    def second_turn_of_a(point: ClientPoint, actor: str) -> ClientAction | None:
        turns.append(actor) if point == "client.order" else None
        return LetOthersPass(2) if point == "client.order" and actor == "a" and turns.count("a") == 2 else None

    turns: list[str] = []
    sessions = [session("a", 2), session("b", 1, tokens=400), session("c", 1, tokens=500)]
    _, seen = run(sessions, LoadPlan(faults=second_turn_of_a))
    assert [record.request for record in seen.records] == ["a:0", "b:0", "c:0", "a:1"]


def test_waiting_for_others_that_never_answer_ends() -> None:
    _, seen = run([session("a", 1)], LoadPlan(faults=faults_at(order=LetOthersPass(5, wait_max_s=2.0))))
    assert seen.records[0].sent_us == pytest.approx(2e6)


class RecordingProbes:
    """Fires every fault at its first hit."""

    def __init__(self) -> None:
        self.hits: list[tuple[str, str]] = []

    def emit(self, event: Event) -> None:
        raise AssertionError("the client emits nothing")

    def hit(self, point: str, actor: str, layer: int = -1) -> Decision | None:
        self.hits.append((point, actor))
        return Decision(delay_us=60_000.0) if self.hits.count((point, actor)) == 1 else None


def test_the_harness_faults_reach_every_point_of_the_client() -> None:
    probes = RecordingProbes()
    result, seen = run([session("a", 2, tokens=9)], LoadPlan(faults=faults_of(probes)))
    points = ["client.order", "client.burst", "client.abort", "client.disconnect", "client.slow_reader"]
    assert [point for point, _ in probes.hits[:5]] == points
    assert seen.records[0].finish == "abort" and result.answered == 1


def test_transient_errors_are_tried_again_with_growing_pauses_then_the_session_goes_on() -> None:
    times: list[float] = []

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        times.append(asyncio.get_running_loop().time())
        await sending(b'{"error":{"message":"full"}}', status=503)(scope, receive, send)

    result, seen = run([session("a", 2)], LoadPlan(retries_max=2, retry_after_s=1.0), busy)
    assert times == pytest.approx([0, 1, 3, 4, 5, 7])
    assert {record.error for record in seen.records} == {"busy: the server answered 503: full"}
    assert (result.errors, result.retries, result.answered) == ({"busy": 6}, 4, 0)


def test_a_rejected_request_is_not_repeated_and_the_recorded_answer_takes_its_place() -> None:
    stub = ChatStub()
    made = session("a", 2)
    refused = msgspec.structs.replace(made.turns[0], messages=(Message("user", "refuse this"),))
    result, seen = run([msgspec.structs.replace(made, turns=(refused, made.turns[1]))], LoadPlan(), stub)
    assert [record.finish for record in seen.records] == [
        "error",
        "error",
    ]  # the words are still in the history
    assert stub.bodies[1]["messages"][1]["content"] == "recorded answer"
    assert result.errors == {"rejected": 2}


def long_session(turns: int) -> Session:
    lines = "\n".join(f"line {index} of the tool result" for index in range(100))
    return session("long", turns, text=lines, tokens=20)


def test_every_turn_of_a_session_longer_than_the_limit_is_asked_and_the_cuts_are_counted() -> None:
    stub = ChatStub(limit=4000)
    plan = LoadPlan(context_tokens_max=4000, time_scale=0)
    result, seen = run([long_session(30)], plan, stub)
    assert [record.finish for record in seen.records] == ["stop"] * 30
    assert all(body["messages"][0]["content"].endswith("result 0") for body in stub.bodies)
    assert seen.records[-1].dropped_turns == result.dropped_turns > 20
    assert result.dropped_characters > 20 * 2000 and result.requests_cut > 20


def test_a_server_whose_tokens_are_shorter_than_ours_is_understood_after_one_refusal() -> None:
    class Dense(ChatStub):
        async def answer(self, body: dict[str, Any], name: str, receive: Receive, send: Send) -> None:
            prompt = sum(len(message["content"]) for message in body["messages"]) // 2
            if prompt + body["max_tokens"] > 4096:
                told = f"maximum context length is 4096 tokens, you asked for {prompt + body['max_tokens']}"
                await reply(send, 400, {"error": {"message": f"{told}: {prompt} and {body['max_tokens']}"}})
                return
            await super().answer(body, name, receive, send)

    result, seen = run([long_session(6)], LoadPlan(context_tokens_max=4096, time_scale=0), Dense())
    last = {record.turn: record.finish for record in seen.records}
    assert last == dict.fromkeys(range(6), "stop") and result.errors["rejected"] > 0
    assert max(record.attempt for record in seen.records) == 1


def test_the_bundled_servers_own_refusal_is_understood_with_its_limit() -> None:
    with pytest.raises(ApiError) as refused:
        answer_tokens_max(29, 8251, 8192, "messages")
    found = LENGTH_NUMBER.search(str(refused.value))
    assert LENGTH_WORDS.search(str(refused.value)) and found is not None and found[1] == "8192"


def test_an_unknown_limit_is_learnt_from_the_servers_refusal() -> None:
    stub = ChatStub(limit=4000)
    result, seen = run([long_session(30)], LoadPlan(time_scale=0), stub)
    last = {record.turn: record for record in seen.records}
    assert [last[turn].finish for turn in range(30)] == ["stop"] * 30
    assert result.errors == {"rejected": 1}  # once refused, never again


class WordDetector:
    """Convicts an answer that has said a word; tells the same again at the end when asked to."""

    def __init__(self, word: str, log: list[str]) -> None:
        self.name = "words"
        self._word = word
        self._log = log

    def feed(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[float, ...] = ()) -> OnlineFinding | None:
        self._log.append(text)
        return Claim("words", f"said {text}") if text == self._word else None

    def close(self) -> OnlineFinding | None:
        return Claim("words", "closed") if self._word == "at the end" else None


class Claim(msgspec.Struct, frozen=True):
    detector: str
    claim: str


@pytest.mark.parametrize(("retries", "text"), [(0, "w0 w1 w2 w3 "), (1, "w0 w1 ")])
def test_detectors_are_fed_piece_by_piece_and_may_abort(retries: int, text: str) -> None:
    log: list[str] = []
    result, seen = run(
        [session("a", 1)],
        LoadPlan(on_anomaly="abort-retry", anomaly_retries_max=retries),
        seen=Seen(lambda request, prompt: [WordDetector("w1 " if request == "a:0" else "never", log)]),
    )
    assert [part for part in log if part][: len(text.split())] == [part + " " for part in text.split()]
    assert seen.findings == [("a:0", "said w1 ")] and seen.convicting == {"a:0": ["words"]}
    assert (seen.records[0].text, seen.records[0].finish) == (text, "abort" if retries else "stop")
    assert result.findings == seen.progress[-1].anomalies == 1


class CountingDetector:
    """Convicts an answer whose counts reach two verifies."""

    name = "counts"

    def __init__(self, wrong: bool) -> None:
        self._wrong = wrong

    def feed(self, counts: SpecCounts) -> OnlineFinding | None:
        return (
            Claim("counts", f"{counts.spec_verify_ct} verifies") if self._wrong and counts.spec_verify_ct == 2 else None
        )

    def close(self) -> OnlineFinding | None:
        return None


class DraftingStub(ChatStub):
    """Says with each word that another verify has accepted one of three drafts."""

    async def answer(self, body: dict[str, Any], name: str, receive: Receive, send: Send) -> None:
        words = 0

        async def counting(sent: dict[str, Any]) -> None:
            nonlocal words
            if b"delta" in sent.get("body", b""):
                words += 1
                told = json.dumps(meta(2 * words, words, words, 3 * words)).encode()
                sent = {**sent, "body": sent["body"].replace(b"data: {", b'data: {"meta_info": %b, ' % told)}
            await send(sent)

        await super().answer(body, name, receive, counting)


def given_up(wrong: Callable[[str], bool], turns: int = 2, **plan: Any) -> tuple[LoadResult, Seen, DraftingStub]:
    """Run one session whose requests are convicted where `wrong` says so, and given up then."""
    stub = DraftingStub()
    result, seen = run(
        [session("a", turns)],
        LoadPlan(**({"on_anomaly": "abort-retry"} | plan)),
        stub,
        Seen(counts=lambda request: [CountingDetector(wrong(request))]),
    )
    return result, seen, stub


def test_a_convicted_answer_is_given_up_and_the_session_goes_on_with_the_next() -> None:
    result, seen, stub = given_up(lambda request: request == "a:0")
    assert [(record.request, record.retry_of, record.finish) for record in seen.records] == [
        ("a:0", "", "abort"),
        ("a:0.1", "a:0", "stop"),
        ("a:1", "", "stop"),
    ]
    assert stub.disconnects == [("a:0", 2)] and stub.bodies[0] == stub.bodies[1]
    assert stub.bodies[2]["messages"][1]["content"] == "w0 w1 w2 w3 "
    assert seen.convicting == {"a:0": ["counts"]}
    assert (seen.records[0].completion_tokens, seen.records[0].spec) == (4, SpecCounts(4, 2, 2, 6))
    assert (result.aborted, result.answered, result.retries) == (1, 2, 1)
    assert seen.records[1].sent_us == pytest.approx(seen.records[0].finished_us)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_bounded_and_the_last_answer_is_taken_as_it_comes(retries: int) -> None:
    _, seen, _ = given_up(lambda request: True, turns=1, anomaly_retries_max=retries)
    assert [record.finish for record in seen.records] == ["abort"] * retries + ["stop"]
    assert [record.retry_of for record in seen.records[1:]] == [record.request for record in seen.records[:-1]]
    assert seen.convicting == {record.request: ["counts"] for record in seen.records}


def test_a_report_only_run_gives_nothing_up() -> None:
    _, seen, _ = given_up(lambda request: True, turns=1, on_anomaly="report")
    assert [(each.finish, seen.convicting[each.request]) for each in seen.records] == [("stop", ["counts"])]


def test_a_retry_whose_connection_breaks_is_still_the_retry_of_its_request() -> None:
    lost = [None, Disconnect(after_tokens=1)]

    def faults(point: ClientPoint, actor: str) -> ClientAction | None:
        return lost.pop(0) if point == "client.disconnect" and lost else None

    _, seen, _ = given_up(lambda request: request == "a:0", turns=1, faults=faults)
    assert [(record.request, record.retry_of, record.finish) for record in seen.records] == [
        ("a:0", "", "abort"),
        ("a:0.1", "a:0", "disconnect"),
        ("a:0.2", "a:0", "stop"),
    ]


def test_detectors_are_made_for_the_request_and_its_whole_prompt() -> None:
    made: list[tuple[str, str]] = []

    def noting(request: str, prompt: str) -> list[TextDetector]:
        made.append((request, prompt))
        return []

    run([session("a", 2)], LoadPlan(), seen=Seen(noting))
    assert made == [("a:0", "do it 0\n"), ("a:1", "do it 0\nw0 w1 w2 w3 \ndo it 1\n")]


def test_a_detector_may_convict_at_the_end() -> None:
    _, seen = run([session("a", 1)], LoadPlan(), seen=Seen(lambda request, prompt: [WordDetector("at the end", [])]))
    assert seen.findings == [("a:0", "closed")]


def test_a_cancelled_load_returns_what_there_is_and_delivers_the_unfinished() -> None:
    async def main() -> tuple[LoadResult, ChatStub]:
        stub = ChatStub(token_s=0.1)
        sessions = [session(f"s{number}", 5, tokens=50) for number in range(9)]
        task = asyncio.create_task(driven(sessions, stub, LoadPlan(concurrency=4), seen))
        await asyncio.sleep(8)
        task.cancel()
        return await task, stub

    seen = Seen()
    result, stub = run_virtual(main(), IdleWorld())
    assert result.interrupted and result.sessions_done == 0 and result.sessions_not_started == 5
    cut_off = [record for record in seen.records if record.error == "client: interrupted"]
    assert [record.session for record in cut_off] == ["s0", "s1", "s2", "s3"]
    assert all(record.text for record in cut_off)
    assert stub.active == 0 and result.requests == len(seen.records) == 8


def test_what_a_listener_raises_ends_the_load_and_comes_out() -> None:
    class Full(LoadListener):
        def on_request(self, request: SentRequest) -> None:
            raise RecordError("no space left on device")

    async def main() -> None:
        stub = ChatStub()
        client = open_client("http://stub", transport=AsgiStreamTransport(stub))
        async with client.http:
            with pytest.raises(RecordError, match="no space left"):
                await drive([session(f"s{n}", 9) for n in range(9)], client, LoadPlan(), Full())
        assert stub.active == 0 and len(stub.bodies) <= 9

    run_virtual(main(), IdleWorld())


class DeadTransport(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("127.0.0.1:1: refused", request=request)


def test_a_target_that_never_answers_is_given_up() -> None:
    async def main() -> LoadResult:
        client = ChatClient(httpx.AsyncClient(base_url="http://dead", transport=DeadTransport()))
        sessions = [session(f"s{number}", 50) for number in range(50)]
        return await drive(sessions, client, LoadPlan(concurrency=8))

    result = run_virtual(main(), IdleWorld())
    assert result.target_lost.startswith("refused: no connection: 127.0.0.1:1: refused")
    assert LOST_AFTER_FAILURES + 8 <= result.requests <= LOST_AFTER_FAILURES + 16


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"no published traces at {PUBLISHED}")
@pytest.mark.parametrize(("folder", "turns"), [("mini-swe-agent", 404), ("claude-code", 344), ("swe-agent", 11)])
def test_published_sessions_are_replayed_to_their_last_turn(folder: str, turns: int) -> None:
    sessions = load_traces([PUBLISHED / folder], scale_tokens=0.05)
    plan = LoadPlan(context_tokens_max=2000, answer_tokens_max=8)
    result, seen = run(sessions, plan, ChatStub(limit=2000))
    assert (result.answered, result.errors, result.sessions_done) == (turns, {}, len(sessions))
    assert folder == "swe-agent" or result.dropped_turns > 0


def test_an_empty_load_ends_at_once() -> None:
    result, _ = run([], LoadPlan())
    assert (result.sessions, result.requests) == (0, 0)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (LoadPlan(concurrency=0), "concurrency is 0"),
        (LoadPlan(time_scale=-1), "time_scale is -1"),
        (LoadPlan(shape=Poisson(rate=-1)), "rate is -1"),
        (LoadPlan(rate_max_per_s=5), "in simulated time"),
    ],
)
def test_a_senseless_plan_is_refused(plan: LoadPlan, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run([session("a")], plan)
    with pytest.raises(UsageError, match="same id"):
        run([session("a"), session("a")], LoadPlan())


@pytest.mark.parametrize("name", ["plain-1", "with space", "ünï", "x" * 300, "a#b/c~2", ""])
def test_request_ids_fit_into_a_header_and_stay_unique(name: str) -> None:
    made = request_id(name, 3, 1)
    assert len(made) <= 110 and all("\x21" <= letter <= "\x7e" for letter in made)
    assert made.endswith(":3.1")
    assert request_id(name + "?", 3, 1) != made


def test_bodies_are_valid_json_even_for_odd_text() -> None:
    stub = ChatStub()
    run([session("a", 1, text='quote " slash \\ null \0 line \u2028 emoji 🙂')], LoadPlan(), stub)
    assert json.loads(json.dumps(stub.bodies[0]))["messages"][0]["content"].endswith("🙂 0")


def test_every_listener_hears_the_load_and_its_detectors_judge_every_answer() -> None:
    first = Seen(lambda request, prompt: [WordDetector("w0 ", [])])
    second = Seen(lambda request, prompt: [WordDetector("w1 ", [])])
    result = run_virtual(driven([session("a", 1)], ChatStub(), LoadPlan(), first, second), IdleWorld())
    assert first.findings == second.findings == [("a:0", "said w0 "), ("a:0", "said w1 ")]
    assert result.findings == 2
    assert first.records == second.records and first.progress == second.progress
