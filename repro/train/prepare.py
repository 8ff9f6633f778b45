"""Corpus and tokenizer: which source files are learned, which are held out, and the byte-level BPE.

The held-out part of the standard library goes into the package (sessions quote from it); everything
else stays in a build folder and is needed for training only.
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from repro.trace.corpus import SourceFile

VOCAB_SIZE = 4096
# The last ids belong to no token: a model that emits one is broken for certain.
UNREACHABLE_IDS = 16
SPECIAL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip

# BSD, MIT and Apache 2.0 licences: learned from, not shipped.
PACKAGES = (
    "altair", "anyio", "attr", "click", "httpx", "jinja2", "jsonschema", "networkx", "numpy", "openai",
    "pandas", "pydantic", "pygments", "rich", "scipy", "selenium", "setuptools", "starlette",
    "statsmodels", "sympy", "trio", "typer", "uvicorn",
)  # fmt: skip
LEFT_OUT_PARTS = frozenset(
    {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "__pycache__"}
)
LINE_CHARS_MAX = 120
LINES_MIN = 40
FILE_BYTES_MAX = 120_000
HELD_OUT_SHARE = 0.3
HELD_OUT_CHARS_MAX = 3_600_000


def standard_library() -> list[SourceFile]:
    """Return the running Python's own library, tests left out, sorted by path."""
    return list(_sources(Path(sysconfig.get_paths()["stdlib"]), ""))


def packages() -> list[SourceFile]:
    """Return the source files of the installed packages that are learned from."""
    site = Path(sysconfig.get_paths()["purelib"])
    return [source for name in PACKAGES for source in _sources(site / name, f"{name}/")]


def split(sources: Iterable[SourceFile]) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return (learned, held out): by a hash of the path, so that a new file moves no other."""
    learned: list[SourceFile] = []
    held_out: list[SourceFile] = []
    chars = 0
    for source in sources:
        share = hashlib.blake2b(source.path.encode(), digest_size=4).digest()
        held = int.from_bytes(share, "little") < HELD_OUT_SHARE * 2**32 and chars < HELD_OUT_CHARS_MAX
        chars += sum(map(len, source.lines)) if held else 0
        (held_out if held else learned).append(source)
    return learned, held_out


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return the byte-level BPE tokenizer, split after every newline so that lines encode apart."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), behavior="merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - UNREACHABLE_IDS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_config() -> str:
    """Return tokenizer_config.json, so that `AutoTokenizer` reads the checkpoint too."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 16384,
    }
    return json.dumps(config, indent=2) + "\n"


def _sources(root: Path, prefix: str) -> Iterator[SourceFile]:
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT_PARTS & set(name.parts) or path.stat().st_size > FILE_BYTES_MAX:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore").expandtabs(4)
        lines = tuple(line.rstrip() for line in text.split("\n") if len(line) <= LINE_CHARS_MAX)
        if len(lines) >= LINES_MIN:
            yield SourceFile(f"{prefix}{name.as_posix()}", lines)
