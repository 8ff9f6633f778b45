"""The loops that must be found, and the honest repetitions that must not."""

import inspect
import textwrap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Finding
from detectors.text.repetition import Repetition

CODE = inspect.getsource(textwrap)[:6000]
LINE = "        self.received = self.transport.read(limit)\n"
BLOCK = CODE[2000:2300]


def found(text: str, prompt: str = "", chunk: int = 4) -> Finding | None:
    detector = Repetition(prompt)
    for start in range(0, len(text), chunk):
        finding = detector.feed(text[start : start + chunk])
        if finding:
            return finding
    return detector.close()


@pytest.mark.parametrize("beginning", ["", CODE[:1500], CODE])
@pytest.mark.parametrize(
    "loop",
    [
        "received" + "ceived" * 12,
        "# " * 20,
        "= " * 40,
        "2" * 40,
        ".." * 30,
        "0, " * 90,
        LINE * 6,
        BLOCK * 4,
        CODE[3000:4000] * 4,
        "ok " * 25,
        " \u4e2d\u6587" * 30,
        "\U0001f600" * 50,
    ],
    ids=lambda loop: repr(loop[:12]),
)
def test_loops_to_the_end_are_found(beginning: str, loop: str) -> None:
    finding = found(beginning + loop)
    assert finding is not None
    assert finding.layer == "text" and finding.detector == "repetition"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        CODE,
        CODE + "\n# " + "-" * 76 + "\n" + CODE[:500],
        "Title\n" + "=" * 79 + "\n",
        "VALUES = [" + "0, " * 40 + "]\n" + CODE[:300],
        "|---|---|---|\n| a | b | c |\n| a | b | d |\n",
        LINE * 3 + CODE[:200],
        CODE[:1000] + CODE[100:420],
        "    }\n" * 4,
        " " * 90 + "end",
        "".join(f"{index},{index * 7 % 13},0.0,0.0\n" for index in range(80)),
    ],
)
def test_honest_repetition_is_silent(text: str) -> None:
    assert found(text) is None


def test_loop_is_found_while_it_runs() -> None:
    detector = Repetition()
    detector.feed(CODE)
    fed = 0
    while detector.feed("ceived") is None:
        fed += 1
        assert fed < 40
    assert fed * 6 >= 128 - 64


def test_table_copied_from_the_prompt_is_no_loop() -> None:
    table = "TABLE = (\n" + "    0x00, 0x00, 0xff, 0xff,\n" * 60 + ")\n"
    assert found(table) is not None
    assert found(table, prompt=CODE + table + CODE) is None


def test_loop_that_outgrows_the_prompt_is_found() -> None:
    prompt = CODE + LINE * 12 + CODE
    assert found(LINE * 12, prompt) is None
    assert found(LINE * 18, prompt) is not None


def test_loop_wrapped_into_lines_is_found() -> None:
    words = "'lib.lib', " * 60
    wrapped = textwrap.fill(words, 87, subsequent_indent=" " * 20)
    finding = found(CODE[:800] + wrapped)
    assert finding is not None and finding.signature == "loop of wrapped text"
    assert found(wrapped, prompt=CODE + wrapped) is None


def test_line_of_the_prompt_that_loops_is_found() -> None:
    assert found(CODE[:700] + LINE * 6, prompt=CODE + LINE + CODE) is not None


def test_evidence_names_the_unit() -> None:
    finding = found(CODE[:500] + "ceived" * 40)
    assert finding is not None
    assert sorted(str(finding.evidence.unit)) == sorted("ceived")
    assert finding.evidence.period == 6
    assert finding.signature == "loop of text"


def test_ids_that_loop_without_text_are_found() -> None:
    detector = Repetition()
    detector.feed(CODE[:300], (5, 6, 7))
    findings = [detector.feed("", (4095, 4094)) for _ in range(200)]
    assert any(findings)
    assert detector.close() is None


def test_ids_beyond_unicode_do_not_crash() -> None:
    detector = Repetition()
    for _ in range(40):
        detector.feed("a b c", (-1, 1 << 40))
    detector.close()


def test_tokens_of_a_visible_copy_do_not_convict() -> None:
    table = "0, " * 600
    detector = Repetition(prompt=table)
    assert all(detector.feed("0, ", (11, 12)) is None for _ in range(600))
    assert detector.close() is None


pieces = st.sampled_from(["ceived", "# ", "2", "..", LINE, BLOCK, CODE[:137], "0, ", "\n", "\ud800", "\u4e2d", ""])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(pieces, st.integers(1, 40)), max_size=6), st.data())
def test_chunking_does_not_change_the_verdict(parts: list[tuple[str, int]], data: st.DataObject) -> None:
    text = "".join(piece * times for piece, times in parts)
    whole = found(text, chunk=max(1, len(text)))
    assert found(text, chunk=1) == whole
    assert found(text, chunk=data.draw(st.integers(1, 900))) == whole


def test_ten_megabytes_take_bounded_time_and_memory() -> None:
    detector = Repetition(prompt="0, " * 100_000)
    started = time.process_time()
    for text in (CODE * 850, "0, " * 1_700_000):
        detector.feed(text)
    assert time.process_time() - started < 20
    assert len(detector._tail) < 10_000 and not detector._blocks.waiting
