"""A server is asked about its own answers past its cache: what differs and how much, as SGLang and vLLM say it."""

from collections.abc import Sequence

import msgspec
import pytest

from repro.base.clock import run_virtual
from repro.load import clean
from repro.load.again import RememberingClient
from repro.load.answer import Answer
from repro.load.asgi import AsgiStreamTransport
from repro.load.clean import ASKED_FOR, NO_IDS, NO_LOGPROBS, Checks, check_answers, difference
from repro.load.client import Ask, open_client
from repro.load.replies import Place, Reply
from repro.load.wire import Api
from tests.idle import IdleWorld
from tests.load.closed_stub import FAR, NEAR, ClosedStub, logprobs, split

TOKENS = 40
BUDGET = 10**6
APIS: dict[str, Api] = {"sglang": "generate", "vllm": "chat"}


def ask(name: str) -> Ask:
    text = " ".join(f"{name}{number}" for number in range(20))
    return Ask(name, [msgspec.json.encode({"role": "user", "content": text})], TOKENS)


def checked(stub: ClosedStub, names: Sequence[str] = "abc", budget: int = BUDGET, api: Api | None = None) -> Checks:
    """Ask under these names, then have all answers checked."""
    checks = Checks()
    api = api or APIS[stub.speaks]

    async def main() -> None:
        http = open_client("http://stub", transport=AsgiStreamTransport(stub)).http
        client = RememberingClient(http, api=api, extra=ASKED_FOR[api])
        async with http:
            for name in names:
                await client.ask(ask(name), lambda answer, piece: None, Answer())
            await check_answers(client, list(client.asked.values()), checks, tokens_max=budget)

    run_virtual(main(), IdleWorld())
    return checks


def near_tie(name: str, speaks: str) -> int:
    """The place of the first near-tie in the clean answer."""
    user = " ".join(f"{name}{number}" for number in range(20))
    prefix = split(f"<|user|>\n{user}\n<|assistant|>\n" if speaks == "sglang" else user)
    for place in range(TOKENS):
        (best, first), (_, second) = logprobs(prefix).items()
        if first - second < 1:
            return place
        prefix.append(best)
    raise AssertionError("no near-tie")


@pytest.mark.parametrize("speaks", ["sglang", "vllm"])
def test_a_clean_answer_is_said_again_and_each_token_is_the_likeliest(speaks: str) -> None:
    for check in checked(ClosedStub(speaks)).done:
        assert (check.first_difference, check.gap, check.tokens, check.bypassed) == (-1, 0.0, TOKENS, True)
        assert check.deficits == (0.0,) * TOKENS and check.surprisals == pytest.approx((0.1,) * TOKENS)
        assert check.surprisals_under_load == check.surprisals


@pytest.mark.parametrize("speaks", ["sglang", "vllm"])
def test_how_likely_tokens_were_under_load_is_kept_as_it_was_told(speaks: str) -> None:
    stub = ClosedStub(speaks)
    stub.doubts["b"] = 0.5
    _, doubted, _ = checked(stub).done
    assert doubted.surprisals_under_load == pytest.approx((0.6,) * TOKENS) and doubted.surprisals[0] == pytest.approx(
        0.1
    )


def test_answers_whose_tokens_came_without_log_probabilities_tell_nothing_of_them() -> None:
    stub = ClosedStub("vllm")
    stub.drops = 3
    [check] = checked(stub, names="a").done
    assert check.surprisals_under_load == () and len(check.surprisals) == TOKENS


@pytest.mark.parametrize("speaks", ["sglang", "vllm"])
def test_a_corrupted_answer_differs_by_far_and_a_rounded_one_by_little(speaks: str) -> None:
    stub = ClosedStub(speaks)
    tie = near_tie("a", speaks)
    stub.flips["a"], stub.corrupts["b"] = tie, 7
    flipped, corrupted, clean = checked(stub).done
    assert (flipped.first_difference, clean.gap) == (tie, 0.0)
    assert flipped.gap == pytest.approx(NEAR) and max(flipped.deficits) == pytest.approx(NEAR)
    assert corrupted.first_difference == 7 and max(corrupted.deficits) == pytest.approx(FAR - 0.1)
    assert corrupted.gap is not None and corrupted.gap >= NEAR, "at least: its token is not among the alternatives"


def test_the_cache_is_dropped_or_else_passed_with_a_salt_of_its_own_for_each_answer() -> None:
    stub = ClosedStub()
    checked(stub)
    assert stub.paths.count("/flush_cache") == 3 and stub.salts == [None] * 6
    stub = ClosedStub("vllm", flushes=False)
    assert all(check.bypassed for check in checked(stub).done)
    assert stub.paths.count("/flush_cache") == 1 and [stub.salts[at] for at in (0, 2, 4)] == stub.salts[1::2]
    assert len(set(stub.salts)) == 3 and None not in stub.salts


def test_a_salt_that_no_count_confirms_is_no_proof() -> None:
    assert not any(check.bypassed for check in checked(ClosedStub("vllm", flushes=False, counts=False)).done)


def test_without_log_probabilities_three_checks_show_it_and_no_more_are_made() -> None:
    checks = checked(ClosedStub(tells=False), names="abcdef")
    assert len(checks.done) == 3 and checks.wanted == 6
    assert all(
        check.rerun_why == NO_LOGPROBS and "without the log-prob" in check.surprisal_why for check in checks.done
    )


def test_without_token_ids_the_rerun_compares_texts_and_nothing_is_sent_back() -> None:
    stub = ClosedStub("vllm")
    stub.ids, stub.corrupts["b"] = False, 7
    clean, corrupted, _ = checked(stub).done
    assert (clean.gap, clean.surprisal_why) == (0.0, NO_IDS)
    assert corrupted.first_difference == 7 and corrupted.gap


def test_without_tokenize_a_short_prompt_is_named_by_its_log_probabilities() -> None:
    stub = ClosedStub()
    stub.tokenizes, stub.corrupts["b"] = False, 7
    clean, corrupted, _ = checked(stub).done
    assert max(clean.deficits) == 0 and max(corrupted.deficits) == pytest.approx(FAR - 0.1)


@pytest.mark.parametrize("corrupt", [False, True])
def test_texts_of_tokens_that_did_not_all_come_acquit_by_the_text_and_convict_nobody(corrupt: bool) -> None:
    stub = ClosedStub("vllm")
    stub.ids, stub.drops = False, 3
    if corrupt:
        stub.corrupts["a"] = 7
    (check,) = checked(stub, names="a").done
    assert (check.first_difference, check.gap) == ((0, None) if corrupt else (-1, 0.0))


@pytest.mark.parametrize("tokenizes", [True, False])
def test_the_budget_of_tokens_is_kept(tokenizes: bool) -> None:
    def stub() -> ClosedStub:
        made = ClosedStub()
        made.tokenizes = tokenizes
        return made

    one = checked(stub(), names="a").tokens
    assert not checked(stub(), names="a", budget=one - 1).tokens
    checks = checked(stub(), names="abcd", budget=2 * one)
    assert checks.over_budget and 0 < len(checks.done) < 4 and checks.tokens <= 2 * one


def test_a_server_that_dies_is_given_up_with_what_there_is() -> None:
    stub = ClosedStub()
    stub.dies_after = 4
    checks = checked(stub, names="abcdefgh")
    assert len(checks.done) == 2 and "while its answers were checked" in checks.lost


def said(*words: str, tops: dict[str, float] | None = None) -> Reply:
    alternatives = tops if tops is not None else {"other": -3.0}
    return Reply(text="".join(words), places=tuple(Place(word, -1.0, {word: -1.0, **alternatives}) for word in words))


def answer(*words: str, finish: str = "stop") -> Answer:
    return Answer(words=list(words), parts=["".join(words)], finish=finish)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (answer("a", "b"), said("a", "b"), (-1, 0.0)),
        (answer("a", "x"), said("a", "b"), (1, 2.0)),
        (answer("a", "other"), said("a", "b", tops={"other": -1.5, "third": -9.0}), (1, 0.5)),
        (answer("a"), said("a", "b"), (1, 2.0)),  # it ended where the server goes on: the margin over the second best
        (answer("a", finish="abort"), said("a", "b"), (-1, 0.0)),  # we gave it up
        (answer("a", "b"), said("a"), (1, None)),  # it went on where the server ends, which has no place
        (answer("a", "x"), said("a", "b", tops={}), (1, None)),
    ],
)
def test_a_difference_is_told_with_its_place_and_gap(mine: Answer, theirs: Reply, expected: object) -> None:
    assert difference(mine, theirs) == expected


def test_texts_are_compared_where_there_is_nothing_else() -> None:
    assert difference(Answer(parts=["same"]), Reply(text="same")) == (-1, 0.0)
    assert difference(Answer(parts=["same"]), Reply(text="other")) == (0, None)


def test_a_reply_without_an_end_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "REPLY_BYTES_MAX", 100)
    checks = checked(ClosedStub("sglang"))
    assert not checks.done and "answered with more than" in checks.lost
