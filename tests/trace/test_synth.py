"""Sessions made from source files."""

import msgspec
import pytest

from repro.serve.server.chat import bundled_encoder
from repro.trace import corpus, synth
from repro.trace.corpus import SourceFile
from repro.trace.format import Message, Session
from repro.train.data import encode_session

KINDS = tuple(synth.KINDS)


def make(kind: str = "code-review", seed: int = 7, index: int = 0, **options: int) -> Session:
    return synth.synthesise(kind, seed, index, **options)


def history(session: Session) -> list[Message]:
    return [m for turn in session.turns for m in (*turn.messages, turn.reply) if m is not None]


def quotes(session: Session) -> list[tuple[list[Message], str, str, str]]:
    """Return (messages before the request, first anchor, last anchor, answer) of each quote."""
    found = []
    before: list[Message] = []
    asked: tuple[list[Message], str, str] | None = None
    for message in history(session):
        if message.role == "user":
            asked = None
            if "from:\n" in message.content:
                first, last = message.content.split("from:\n")[1].split("\nto:\n")
                asked = (list(before), first, last)
        if message.role == "assistant" and asked and not message.tool_calls:
            found.append((*asked, message.content))
        before.append(message)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_is_a_function_of_its_key(kind: str) -> None:
    assert msgspec.json.encode(make(kind)) == msgspec.json.encode(make(kind))
    assert make(kind).turns != make(kind, index=1).turns
    assert make(kind).turns != make(kind, seed=8).turns


def test_a_session_is_the_same_on_every_machine() -> None:
    # Fails when the synthesiser or the corpus changes: then recorded tokens of old runs are void.
    session = make(prompt_tokens_target=2000)
    first = session.turns[0].messages[1].content
    assert first.startswith(f"Ticket {session.nonce}.\nOpen:\n")
    assert (session.nonce, len(session.turns)) == ("bf20886390f24cde", 8)


def test_all_sessions_share_their_beginning_and_no_nonce() -> None:
    encoder = bundled_encoder()
    openings = []
    for kind in KINDS:
        for index in range(3):
            session = make(kind, index=index, prompt_tokens_target=1000)
            openings.append(encode_session(encoder, session)[:200])
    assert all(opening == openings[0] for opening in openings)
    assert len({make(kind, index=i, turns=1).nonce for kind in KINDS for i in range(20)}) == 20 * len(KINDS)


@pytest.mark.parametrize("target", [2000, 4000, 8000])
def test_the_target_is_met_in_tokens(target: int) -> None:
    encoder = bundled_encoder()
    for index in range(4):
        tokens = len(encode_session(encoder, make(index=index, prompt_tokens_target=target)))
        assert 0.85 * target < tokens < 1.1 * target + 1500


def test_turns_bound_the_session() -> None:
    assert len(make(turns=3).turns) == 3


@pytest.mark.parametrize("kind", synth.TRAINED_KINDS)
def test_every_quote_stands_in_the_context_between_its_anchors(kind: str) -> None:
    for index in range(4):
        session = make(kind, index=index, prompt_tokens_target=6000)
        everything = [m.content for m in history(session) if m.role == "tool"]
        for before, first, last, answer in quotes(session):
            lines = answer.split("\n")
            assert (lines[0], lines[-1]) == (first, last)
            assert synth.QUOTE_LINES[0] <= len(lines) <= synth.QUOTE_LINES[1]
            assert sum(f"\n{answer}\n" in f"\n{content}\n" for content in everything) == 1
            for anchor in (first, last):
                assert sum(m.content.split("\n").count(anchor) for m in before) <= 1


def test_quotes_and_anchors_have_the_promised_tokens() -> None:
    encoder = bundled_encoder()
    lengths = []
    for index in range(10):
        for _, first, last, answer in quotes(make(index=index, prompt_tokens_target=6000)):
            lengths.append(len(encoder.encode_text(answer)))
            assert min(len(encoder.encode_text(anchor)) for anchor in (first, last)) >= 6
    assert sum(40 <= length <= 160 for length in lengths) >= 0.95 * len(lengths)
    assert max(lengths) < 200


def test_quotes_of_files_read_long_ago_are_asked_for() -> None:
    asked = [m.content for m in history(make(prompt_tokens_target=8000)) if m.role == "user"]
    assert sum(text.startswith("Show the code of") for text in asked) >= 5


def test_bug_fix_sessions_search_edit_and_test() -> None:
    session = make("bug-fix", prompt_tokens_target=8000)
    names = {call.name for m in history(session) for call in m.tool_calls}
    assert names == {"read_file", "search", "edit_file", "run_tests"}
    for call in (call for m in history(session) for call in m.tool_calls if call.name == "edit_file"):
        assert call.arguments["old"] != call.arguments["new"]


def test_short_answers_are_lines_of_the_context() -> None:
    before = ""
    for message in history(make("bug-fix", prompt_tokens_target=6000)):
        if message.role == "assistant" and message.content and "\n" not in message.content:
            assert message.content in before
        before += message.content + "\n"


def test_a_ticket_stands_in_a_file_that_is_else_the_same_in_all_sessions() -> None:
    files = []
    for index in range(2):
        session = make("ticket", index=index, prompt_tokens_target=2000)
        (ticket,) = (m.content for m in history(session) if m.role == "tool" and session.nonce in m.content)
        files.append(ticket.replace(session.nonce, "nonce"))
        assert session.turns[0].messages[1].content.startswith(f"Ticket {session.nonce}.\nOpen {synth.TICKET_PATH}")
        told = [turn.reply.content for turn in session.turns if turn.reply and session.nonce in turn.reply.content]
        assert len(told) >= 3 and set(told) == {ticket}
    assert files[0] == files[1]


def test_sources_without_a_quotable_range_end_the_session() -> None:
    same = SourceFile("same.py", ("x = 1",) * 100)
    assert synth.synthesise("code-review", 0, 0, sources=(same,)).turns == ()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        make("poetry")


def test_a_snapshot_reads_back_as_it_was_packed() -> None:
    sources = (SourceFile("a.py", ("x = 1", "", "é")), SourceFile("b.py", ("y",)))
    packed = corpus.pack(sources)
    assert corpus.unpack(packed) == sources
    assert packed == corpus.pack(sources)


def test_the_bundled_files_are_many_and_sorted() -> None:
    paths = [source.path for source in corpus.source_files()]
    assert len(paths) > 100
    assert paths == sorted(paths)
