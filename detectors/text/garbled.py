"""Finds text that is no language: salad of tokens and symbols, mojibake, broken and mixed characters.

Broken syntax is no garble, and a foreign script alone convicts nobody (healthy models bleed Chinese):
letters of scripts that the prompt lacks are counted in `foreign` and in the evidence.
"""

from typing import NamedTuple

from detectors.base import Finding
from detectors.evidence import GarbledSpan
from detectors.text import characters
from detectors.text.blocks import Blocks
from detectors.text.salad import BLOCK_CHARS, Salad

# Broken characters in two blocks (1,024 characters) that the prompt does not have. A healthy answer shows
# one at a cut character or in a quoted byte string; see the table of tests.bench.detectors.
REPLACEMENTS_MIN = 3
CONTROLS_MIN = 3
MOJIBAKE_MIN = 4
SCRIPT_JUMPS_MIN = 6
EXCERPT_CHARS = 400


class Wrong(NamedTuple):
    """What is wrong with a block."""

    kind: str
    size: float
    what: str


class Garbled:
    """The detector of garbled text; at most one finding an answer."""

    name = "garbled"

    def __init__(self, prompt: str = "") -> None:
        self.foreign = 0  # letters of a script that is neither Latin nor in the prompt
        self._prompt = prompt
        self._prompt_scripts: frozenset[str] | None = None
        self._salad = Salad(prompt)
        self._blocks = Blocks(BLOCK_CHARS)
        self._seen = 0
        self._last = ""  # the block before
        self._found = False

    def feed(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[float, ...] = ()) -> Finding | None:
        """Take the next piece of the answer; returns a finding at the end of a block."""
        if not text or self._found:
            return None
        for block in self._blocks.feed(text):
            finding = self._judge(block)
            if finding:
                return finding
        return None

    def close(self) -> Finding | None:
        """Judge the last, incomplete block, and how the answer ends."""
        return None if self._found else self._judge(self._blocks.end(), ended=True)

    def _judge(self, block: str, *, ended: bool = False) -> Finding | None:
        self._seen += len(block)
        wrong = self._broken(block) or self._salad_in(block, ended=ended)
        excerpt = (self._last + block)[-EXCERPT_CHARS:]
        self._last = block
        if wrong is None:
            return None
        self._found = True
        evidence = GarbledSpan(self._seen, excerpt, self.foreign, round(self._salad.bits, 1))
        claim = f"garbled text: {wrong.size:.3g} {wrong.what}"
        return Finding(self.name, "text", claim, f"garbled: {wrong.kind}", evidence=evidence)

    def _salad_in(self, block: str, *, ended: bool) -> Wrong | None:
        if not self._salad.feed(block) and not (ended and self._salad.ended()):
            return None
        share = 100 * self._salad.rare_share()
        return Wrong("salad", share, "% of the letters and marks stand where no known text has them")

    def _broken(self, block: str) -> Wrong | None:
        """Return what is wrong with the characters of this block and the one before."""
        if block.isascii() and not characters.CONTROL.search(block):
            return None
        self._count_foreign(block)
        text, prompt = self._last + block, self._prompt
        new_controls = [mark for mark in characters.CONTROL.findall(text) if mark not in prompt]
        if len(new_controls) >= CONTROLS_MIN:
            return Wrong("control characters", len(new_controls), "control characters")
        if characters.REPLACEMENT not in prompt and text.count(characters.REPLACEMENT) >= REPLACEMENTS_MIN:
            return Wrong("broken bytes", text.count(characters.REPLACEMENT), "replacement characters")
        mistaken = [letter for letter in characters.mojibake(text) if letter not in prompt]
        if len(mistaken) >= MOJIBAKE_MIN:
            return Wrong("mojibake", len(mistaken), "characters of UTF-8 read in an eight-bit code")
        jumps = characters.script_jumps(text)
        if jumps >= SCRIPT_JUMPS_MIN and characters.script_jumps(prompt) < SCRIPT_JUMPS_MIN:
            return Wrong("mixed scripts", jumps, "letters beside a letter of an unrelated script")
        return None

    def _count_foreign(self, block: str) -> None:
        if self._prompt_scripts is None:
            self._prompt_scripts = frozenset(map(characters.script, set(self._prompt))) | {"", "LATIN"}
        self.foreign += sum(characters.script(character) not in self._prompt_scripts for character in block)
