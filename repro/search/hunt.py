"""The hunt: plays schedules until something is found, and plays each finding again before it is reported."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import msgspec
from msgspec.structs import replace

from detectors.base import Finding, Layer
from repro.base.errors import UsageError
from repro.base.verdict_word import VerdictWord
from repro.pool.call import Died
from repro.pool.local import LocalPool
from repro.record.folder import STAMP
from repro.run.options import RunOptions
from repro.scenario.overrides import light_load, overridden
from repro.scenario.schema import Scenario
from repro.schedule.overrides import Overrides
from repro.search.play import Played, Trial, comes_again, discard, killed, play
from repro.search.searcher import Corpus, Search, Searcher

CORPUS_FILE = "corpus.json"
FINDINGS_MAX = 1_000  # causes; more of them is one bug that names itself anew each time
ERRORS_MAX = 10  # shown of all errors


class Quarry(msgspec.Struct, frozen=True):
    """What to hunt for, with what load, and when to stop."""

    search: Search = "portfolio"
    budget: int = 200  # schedules
    time_s: float | None = None
    layers: tuple[Layer, ...] = ("ordering", "canary", "divergence", "text")  # what counts as found
    everything: bool = False  # do not stop at the first finding
    full: bool = False  # the scenario's whole load, not a light one
    stamps: bool = True  # stamps instead of tensors


class Caught(msgspec.Struct, frozen=True):
    """A finding, by its cause, and the run that shows it.

    `proved`: a new process came to the same run; None when the hunt was stopped before it could.
    """

    signature: str
    layer: str
    detector: str
    claim: str
    token: str
    run_dir: str
    schedule_number: int
    strategy: str
    proved: bool | None


class Tally(msgspec.Struct):
    """How a hunt stands."""

    runs: int = 0
    vacuous: int = 0
    unknown: int = 0  # inconclusive or failed: nothing was judged that could be called clean
    died: int = 0
    orders: int = 0
    seconds: float = 0.0
    caught: list[Caught] = []
    errors: list[str] = []
    interrupted: bool = False
    corpus: str = ""  # the file for a hunt that goes on from this one

    @property
    def by_layer(self) -> Counter[str]:
        """Return how many causes were found in each layer."""
        return Counter(each.layer for each in self.caught)

    @property
    def verdict(self) -> VerdictWord:
        """Return the word of the hunt: only proved findings count; a replay that differs is a failure."""
        if any(each.proved is False for each in self.caught) or (self.died and self.died == self.runs):
            return VerdictWord.FAILED
        if any(each.proved for each in self.caught):
            return VerdictWord.ANOMALY
        if self.caught or self.interrupted or not self.runs:
            return VerdictWord.INCONCLUSIVE
        if self.vacuous == self.runs:
            return VerdictWord.VACUOUS
        return VerdictWord.INCONCLUSIVE if self.unknown else VerdictWord.CLEAN

    @property
    def as_json(self) -> dict[str, object]:
        """Return what `repro hunt --json` prints; the token is the first finding's."""
        word = self.verdict
        return {
            "verdict": word, "runs": self.runs, "findings": self.caught,
            "token": self.caught[0].token if self.caught else "", "orders": self.orders, "vacuous": self.vacuous,
            "unknown": self.unknown, "died": self.died, "errors": self.errors[:ERRORS_MAX],
            "seconds": round(self.seconds, 3), "corpus": self.corpus, "exit_code": word.exit_code,
        }  # fmt: skip


class _Proposed(Trial, frozen=True, kw_only=True):
    """A trial with its number in the hunt and the arm of the search that proposed it."""

    number: int
    arm: str


def hunt(
    scenario: Scenario,
    options: RunOptions,
    quarry: Quarry,
    before: Corpus,
    *,
    root: Path,
    workers: int,
    clock_s: Callable[[], float],
    on_progress: Callable[[Tally], None],
) -> Tally:
    """Hunt and return how it stands in the end; the corpus goes into a folder beside the scenario's runs.

    `clock_s` is real time. Raises UsageError for a load that makes no sense, before processes start.
    """
    load = Overrides(stamps=quarry.stamps)
    if not quarry.full:
        load = light_load(scenario, stamps=quarry.stamps, seed=options.seed)
    overridden(scenario, load)
    searcher = Searcher(quarry.search, options.seed, before)
    folder = root / scenario.name / f"{datetime.now(UTC).strftime(STAMP)}-hunt"
    folder.mkdir(parents=True, exist_ok=True)
    hunting = Hunt(
        scenario, replace(options, overrides=load), quarry, searcher, root=root, workers=workers, clock_s=clock_s,
        on_progress=on_progress,
    )  # fmt: skip
    tally = hunting.run()
    corpus = folder / CORPUS_FILE
    corpus.write_bytes(msgspec.json.format(msgspec.json.encode(searcher.corpus_left()), indent=1))
    tally.corpus = str(corpus)
    return tally


def read_corpus(path: Path | None) -> Corpus:
    """Return the corpus in a hunt's folder or file; an empty one for None. Raises UsageError for what is none."""
    if path is None:
        return Corpus()
    file = path / CORPUS_FILE if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=Corpus)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{file}: no corpus of a hunt ({error}); give the folder that a hunt has named") from error


@dataclass
class Hunt:
    """One hunt on one scenario. `clock_s` is real time; `on_progress` hears how it stands after each schedule."""

    scenario: Scenario
    options: RunOptions
    quarry: Quarry
    searcher: Searcher
    root: Path
    workers: int
    clock_s: Callable[[], float]
    on_progress: Callable[[Tally], None] = lambda tally: None
    tally: Tally = field(default_factory=Tally, init=False)
    _started_s: float = field(default=0.0, init=False)
    _proposed: int = field(default=0, init=False)
    _killed: bool = field(default=False, init=False)  # a worker was killed; another one would need as much memory
    _known: set[str] = field(default_factory=set, init=False)  # signatures that were found

    def run(self) -> Tally:
        """Hunt until something is found or the budget is spent; Ctrl-C, or a killed worker, returns what there is."""
        self._started_s = self.clock_s()
        with LocalPool(self.workers, calls_each=None) as pool:
            # The natural schedule comes alone: it tells the searcher how much there is to search.
            natural, others = iter([self._propose()]), self._others()
            try:
                for proposed, played in chain(pool.results(play, natural), pool.results(play, others)):
                    self._take(proposed, played)
            except KeyboardInterrupt:
                self.tally.interrupted = True
                for proposed, played in pool.results(play, others):  # those under way are played to their end
                    self._take(proposed, played)
        self._report()
        return self.tally

    def _others(self) -> Iterator[_Proposed]:
        while not self._over:
            yield self._propose()

    @property
    def _over(self) -> bool:
        quarry, tally = self.quarry, self.tally
        late = quarry.time_s is not None and self.clock_s() - self._started_s >= quarry.time_s
        enough = bool(tally.caught) and not quarry.everything
        return tally.interrupted or self._killed or late or enough or self._proposed >= quarry.budget

    def _propose(self) -> _Proposed:
        number = self._proposed
        arm, schedule = self.searcher.propose(number)
        self._proposed += 1
        options = replace(self.options, schedule=schedule)
        return _Proposed(self.scenario, options, str(self.root), number=number, arm=arm)

    def _take(self, proposed: _Proposed, result: Played | Died) -> None:
        tally, played = self.tally, result
        if isinstance(played, Died):
            self._killed = True
            played = Played(proposed.options, error=killed(played))
        tally.runs += 1
        if played.error:
            tally.died += 1
            tally.errors.append(played.error)
        tally.vacuous += played.word == "vacuous"
        tally.unknown += played.word in ("inconclusive", "failed")
        self.searcher.learn(proposed.arm, played)
        tally.orders = len(self.searcher.orders)
        fresh = [each for each in played.found if each.layer in self.quarry.layers and self._is_fresh(each)]
        if fresh:
            proved = self._prove(played)
            tally.caught += [_caught(each, played, proposed, proved) for each in fresh]
        else:
            discard(played)
        self._report()

    def _is_fresh(self, found: Finding) -> bool:
        if found.signature in self._known or len(self._known) >= FINDINGS_MAX:
            return False
        self._known.add(found.signature)
        return True

    def _prove(self, played: Played) -> bool | None:
        try:
            again = comes_again(self.scenario, played, self.root)
        except KeyboardInterrupt:
            self.tally.interrupted = True
            return None
        if isinstance(again, Died):
            self._killed = True
            self.tally.errors.append(killed(again))
            return None
        return again

    def _report(self) -> None:
        self.tally.seconds = self.clock_s() - self._started_s
        self.on_progress(self.tally)


def _caught(found: Finding, played: Played, proposed: _Proposed, proved: bool | None) -> Caught:
    return Caught(
        found.signature, found.layer, found.detector, found.claim, played.token, played.run_dir, proposed.number,
        proposed.arm, proved,
    )  # fmt: skip
