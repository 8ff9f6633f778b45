"""Counts the common 4-grams of ordinary code and prose: `python -m detectors.text.tables.build TRANSLATIONS`.

Sources: the standard library of the running Python (PSF licence) and the installed packages of
`PACKAGES`, all under BSD, MIT or Apache licences; for other languages in Latin letters the message
catalogues (.po) below the folder TRANSLATIONS, where Django (BSD) and Sphinx (BSD) are unpacked. The table
says only which 4-grams of folded characters occur in at least `FILES_MIN` files; no text can be put together
from it. Files whose path hashes into the held-out share are not counted: the detectors are measured on them.
"""

import argparse
import lzma
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from detectors.text.tables import grams

PACKAGES = (
    "httpx",
    "jinja2",
    "networkx",
    "numpy",
    "pandas",
    "pip",
    "pydantic",
    "pygments",
    "rich",
    "scipy",
    "starlette",
    "statsmodels",
    "sympy",
    "torch",
    "transformers",
)
CODE = frozenset((".c", ".cmake", ".cpp", ".css", ".cuh", ".h", ".hpp", ".js", ".pxd", ".py", ".pyi", ".pyx", ".sh"))
DATA = frozenset((".cfg", ".csv", ".ini", ".json", ".svg", ".toml", ".tsv", ".xml", ".yaml", ".yml"))
PROSE = frozenset((".html", ".md", ".rst", ".txt"))
FILES_MIN = 2  # measured: 3 and 5 find less salad at equal false alarms, 1 is over 300 KB
FILE_CHARS_MAX = 40_000  # a generated table must not add more 4-grams than hand-written files
CATALOGUES_MIN = 1  # catalogues are small, and translators have proofread them
LATIN_SHARE_MIN = 0.5  # share of a catalogue's characters; catalogues in other scripts are not counted
_MESSAGE = re.compile(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\s*)+)', re.MULTILINE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')

SHARES = 10
HELD_OUT_SHARES = frozenset((6, 7, 8, 9))  # 6 and 7 calibrate, 8 and 9 are for the reported figures
STDLIB_FILES_MAX = 10_000
PACKAGE_FILES_MAX = 1_500  # torch and sympy have thousands of files alike


def share(path: Path, root: Path) -> int:
    """Return which tenth of all files this one falls into, by its path alone."""
    return zlib.crc32(path.relative_to(root).as_posix().encode()) % SHARES


def roots() -> tuple[Path, Path]:
    """Return the folders of the standard library and of the installed packages."""
    return Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))


def read(path: Path, chars_max: int) -> str | None:
    """Return the beginning of a text file; None when it is not UTF-8."""
    try:
        return path.read_bytes()[: chars_max * 2].decode("utf-8")[:chars_max]
    except UnicodeDecodeError:
        return None


def sources() -> Iterator[Path]:
    """Yield the files to count, in a fixed order."""
    stdlib, packages = roots()
    yield from _chosen(stdlib, stdlib, STDLIB_FILES_MAX)
    for package in PACKAGES:
        yield from _chosen(packages / package, packages, PACKAGE_FILES_MAX)


def _chosen(folder: Path, root: Path, files_max: int) -> list[Path]:
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in CODE | DATA | PROSE
        and "site-packages" not in path.relative_to(root).parts
        and share(path, root) not in HELD_OUT_SHARES
    ]
    found.sort(key=lambda path: zlib.crc32(path.name.encode()))  # a sample of the package, not its first folder
    return found[:files_max]


def catalogues(folder: Path) -> Iterator[str]:
    """Yield the translated messages of each catalogue in Latin letters."""
    for path in sorted(folder.rglob("*.po")):
        messages = _MESSAGE.findall(path.read_text(encoding="utf-8"))
        text = "\n".join("".join(_QUOTED.findall(message)) for message in messages)
        text = text.replace("\\n", "\n").replace('\\"', '"')
        letters = np.count_nonzero(grams.fold(text) < grams.DIGIT)
        if letters > len(text) * LATIN_SHARE_MIN:
            yield text


def count(texts: Iterable[str], texts_min: int) -> grams.Mask:
    """Return, by code, which 4-grams that many of the texts have."""
    in_texts = np.zeros(grams.CLASSES**grams.ORDER, np.uint16)
    for text in texts:
        in_texts[np.unique(grams.codes(grams.pairs(grams.fold(text))))] += 1
    return in_texts >= texts_min


def main() -> None:
    """Write the bitmap beside this file and print its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("translations", type=Path, help="folder with the unpacked wheels of Django and Sphinx")
    folder = parser.parse_args().translations
    ordinary = filter(None, (read(path, FILE_CHARS_MAX) for path in sources()))
    common = count(ordinary, FILES_MIN) | count(catalogues(folder), CATALOGUES_MIN)
    packed = lzma.compress(np.packbits(common, bitorder="little").tobytes(), preset=9 | lzma.PRESET_EXTREME)
    target = Path(__file__).with_name(grams.COMMON_FILE)
    target.write_bytes(packed)
    print(f"{target.name}: {np.count_nonzero(common):,} 4-grams, {len(packed):,} bytes")


if __name__ == "__main__":
    main()
