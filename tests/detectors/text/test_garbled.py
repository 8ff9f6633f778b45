"""What is garble, and what only looks foreign, broken or dense."""

import base64
import hashlib
import inspect
import json
import textwrap
import time
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from detectors.base import Finding
from detectors.text.garbled import Garbled
from detectors.text.salad import BLOCK_CHARS
from detectors.text.tables import grams
from repro.base.rng import generator

CODE = inspect.getsource(textwrap)[:8000]
TOKENIZER = files("repro.serve.model").joinpath("checkpoint/tokenizer.json").read_text(encoding="utf-8")

FLUENT = {
    "Chinese": (
        "这个函数读取配置文件，并把每一行拆成键和值。如果文件不存在，就返回空的字典。调用者可以传"
        "入默认值，这样在缺少某个键的时候不会抛出异常。我们先用 Python 打开文件，然后逐行"
        "处理。"
    ),
    "Japanese": (
        "この関数は設定ファイルを読み込み、各行をキーと値に分割します。ファイルが存在しない場合は"
        "空の辞書を返します。デフォルト値を渡すと、キーがなくても例外は発生しません。"
    ),
    "Korean": (
        "이 함수는 설정 파일을 읽고 각 줄을 키와 값으로 나눕니다. 파일이 없으면 빈 사전을 돌려줍니다. "
        "기본값을 넘기면 키가 없어도 예외가 발생하지 않습니다."
    ),
    "Russian": (
        "Эта функция читает файл настроек и делит каждую строку на ключ и значение. Если файла "
        "нет, она возвращает пустой словарь. Можно передать значения по умолчанию, тогда "
        "исключения не будет. "
    ),
    "German": (
        "Diese Funktion liest die Einstellungen und zerlegt jede Zeile in einen Namen und einen "
        "Wert. Fehlt die Datei, so gibt sie ein leeres Verzeichnis zurück. Vorgaben kann der "
        "Aufrufer selbst übergeben. "
    ),
    "French": (
        "Cette fonction lit le fichier de configuration et découpe chaque ligne en une clé et une "
        "valeur. Si le fichier n'existe pas, elle renvoie un dictionnaire vide. Des valeurs par "
        "défaut peuvent être données. "
    ),
    "Arabic": (
        "تقرأ هذه الدالة ملف الإعدادات وتقسم كل سطر إلى مفتاح وقيمة. إذا لم يكن الملف موجودا فإنها تعيد قاموسا فارغا. "
    ),
}


def found(text: str, prompt: str = "", chunk: int = 4) -> Finding | None:
    detector = Garbled(prompt)
    for start in range(0, len(text), chunk):
        finding = detector.feed(text[start : start + chunk])
        if finding:
            return finding
    return detector.close()


def token_salad(num: int = 500) -> str:
    tokenizer = Tokenizer.from_str(TOKENIZER)
    return str(tokenizer.decode(generator(1, "salad").integers(20, 4000, num).tolist()))


SALADS = {
    "tokens": token_salad(),
    "symbols": "".join(generator(2, "symbols").choice(list("!#$%&()*+,-./:;<=>?@[]^_{|}~ \n"), 900)),
    "letters": "".join(generator(3, "letters").choice(list("abcdefghijklmnopqrstuvwxyz "), 900)),
    "mojibake": FLUENT["Chinese"].encode().decode("latin-1"),
    "cp1252 mojibake": "".join(
        "\u201equoted\u201c \u2013 it\u2019s ".encode().decode("cp1252", "ignore") for _ in range(6)
    ),
    "broken bytes": bytes(generator(4, "bytes").integers(128, 256, 300).tolist()).decode("utf-8", "replace"),
    "control": "ab\x00c\x01d\x02 e\x9fj\x03",
    "mixed scripts": "привет中文שלוםпоہنا한국русكتابの",
}


@pytest.mark.parametrize("prompt", ["", CODE])
@pytest.mark.parametrize("beginning", ["", CODE[:3000]])
@pytest.mark.parametrize("kind", SALADS)
def test_garble_is_found(kind: str, beginning: str, prompt: str) -> None:
    finding = found(beginning + SALADS[kind], prompt)
    assert finding is not None
    assert finding.layer == "text" and finding.signature.startswith("garbled: ")


@pytest.mark.parametrize("language", FLUENT)
@pytest.mark.parametrize("beginning", ["", CODE[:900]])
def test_fluent_foreign_text_is_no_garble(language: str, beginning: str) -> None:
    assert found(beginning + FLUENT[language] * 5) is None
    assert found(beginning + FLUENT[language]) is None


def test_foreign_letters_are_counted_and_convict_nobody() -> None:
    detector = Garbled(prompt="Explain the loop.")
    assert detector.feed("The loop 循环 ends here. " * 40) is None
    assert detector.close() is None
    assert detector.foreign == 2 * 40
    known = Garbled(prompt="Explain 这个循环 to me.")
    known.feed("The loop 循环 ends here. " * 40)
    assert known.foreign == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        CODE,
        "def f(:\n  retrun )x +\n" + CODE[1000:1800],
        json.dumps({f"key{index}": {"id": index, "name": f"row {index}"} for index in range(60)}),
        "\n".join(
            f"2026-11-24 03:{index:02d}:17,104 INFO worker-{index}: done in {index * 7} ms" for index in range(40)
        ),
        "\n".join(hashlib.sha256(bytes([index])).hexdigest() for index in range(40)),
        base64.encodebytes(generator(5, "blob").bytes(2000)).decode(),
        ",".join(f"{value:.7f}" for value in generator(6, "table").normal(size=200)),
        "The file \ufffd was cut.\n" + CODE[:600],
        "Schrödinger's café, naïve coöperation, Ångström, ½ €, “quoted” – fine… " * 12,
        "α + β → γ, Δx ≤ 10 μs; ∀x∈ℝ: x² ≥ 0. " * 20,
        "🎉 done ✅ tests pass 🚀\n" * 30,
    ],
)
def test_ordinary_text_is_silent(text: str) -> None:
    assert found(text) is None


def test_what_the_prompt_has_too_is_quoted_not_garbled() -> None:
    for text in SALADS.values():
        assert found(text, prompt=CODE + text) is None


def test_late_salad_is_seen_soon() -> None:
    text = CODE + SALADS["tokens"]
    finding = found(text)
    assert finding is not None
    end = finding.evidence.end_chars
    assert isinstance(end, int) and len(CODE) < end <= len(CODE) + 1024


def test_one_finding_an_answer() -> None:
    detector = Garbled()
    findings = [detector.feed(SALADS["symbols"]) for _ in range(5)] + [detector.close()]
    assert sum(finding is not None for finding in findings) == 1


pieces = st.sampled_from(
    [
        CODE[:700],
        CODE[700:1900],
        SALADS["tokens"][:300],
        FLUENT["Chinese"],
        "\ufffd",
        "\x00",
        "\ud800",
        "é",
        "😀",
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=6), st.sampled_from(["", CODE, FLUENT["Chinese"]]), st.integers(1, 1500))
def test_chunking_does_not_change_the_verdict(parts: list[str], prompt: str, chunk: int) -> None:
    text = "".join(parts)
    whole = found(text, prompt, chunk=max(1, len(text)))
    assert found(text, prompt, chunk) == whole
    assert found(text, prompt, 1) == whole


@given(st.text(max_size=2000))
@settings(max_examples=60, deadline=None)
def test_any_text_is_judged_without_a_crash(text: str) -> None:
    found(text, chunk=7)
    found("x", prompt=text)


def test_ten_megabytes_take_bounded_time_and_memory() -> None:
    detector = Garbled(prompt=CODE * 200)
    started = time.process_time()
    for _ in range(10):
        detector.feed(CODE * 125)
    assert time.process_time() - started < 20
    assert len(detector._blocks.waiting) < BLOCK_CHARS and len(detector._salad._trail) <= 16


def test_table_knows_words_and_not_every_row_of_letters() -> None:
    table = grams.common_table()
    code = grams.codes(grams.pairs(grams.fold("self return zqxj")))
    assert table[code[:8]].all() and not table[code[-1]]
    assert 300_000 < int(np.count_nonzero(table)) < 600_000
