"""The hunt: plays schedules until something is found, and plays each finding again before it is reported.

hunt ─> Searcher.propose ─> play, in a worker (run_scenario) ─> Searcher.learn
                                └─ findings of a new cause ─> comes_again, in a new process ─> Caught, with its token
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
from repro.scenario.overrides import light_loads, overridden
from repro.scenario.schema import Scenario
from repro.schedule.overrides import Overrides
from repro.search.play import Played, Trial, comes_again, discard, killed, play
from repro.search.searcher import Corpus, Search, Searcher

CORPUS_FILE = "corpus.json"
FINDINGS_MAX = 1_000  # causes; more of them is one bug that names itself anew each time
ERRORS_MAX = 10  # shown of all errors


class HuntPlan(msgspec.Struct, frozen=True):
    """What to hunt for, with what load, and when to stop."""

    search: Search = "portfolio"
    budget: int = 200  # schedules
    time_s: float | None = None
    layers: tuple[Layer, ...] = ("ordering", "canary", "divergence", "text")  # what counts as found
    everything: bool = False  # do not stop at the first finding
    full: bool = False  # the scenario's whole load, not a light one
    stamps: bool = True  # stamps instead of tensors


class Caught(msgspec.Struct, frozen=True):
    """The first finding of a cause, and the run that shows it; `token` replays that run.

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


class HuntTally(msgspec.Struct):
    """The results of a hunt so far."""

    runs: int = 0  # schedules that were played
    vacuous: int = 0
    unknown: int = 0  # inconclusive or failed: nothing was judged that could be called clean
    died: int = 0  # ended with an error instead of a verdict; these count as unknown too
    orders: int = 0  # different orders of accesses, see `Orders`
    seconds: float = 0.0
    caught: list[Caught] = []
    errors: list[str] = []
    interrupted: bool = False
    corpus: str = ""  # the file that a later hunt can continue from

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
    """A trial with its number in the hunt and the arm of the search that chose its schedule."""

    number: int
    arm: str


def hunt(
    scenario: Scenario,
    options: RunOptions,
    plan: HuntPlan,
    before: Corpus,
    *,
    root: Path,
    workers: int,
    clock_s: Callable[[], float],
    on_progress: Callable[[HuntTally], None],
) -> HuntTally:
    """Hunt and return what it came to; the corpus goes into a folder beside the scenario's runs.

    `clock_s` is real time. Raises UsageError for a load that makes no sense, before processes start.
    """
    loads: tuple[Overrides, ...] = (Overrides(stamps=plan.stamps),)
    if not plan.full:
        loads = light_loads(scenario, stamps=plan.stamps, seed=options.seed)
    for load in loads:
        overridden(scenario, load)  # each run does it again; here it raises before there is a process or a folder
    searcher = Searcher(plan.search, options.seed, before)
    folder = root / scenario.name / f"{datetime.now(UTC).strftime(STAMP)}-hunt"
    folder.mkdir(parents=True, exist_ok=True)
    hunting = Hunt(
        scenario, options, plan, searcher, root=root, workers=workers, clock_s=clock_s, on_progress=on_progress,
        loads=loads,
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
    """One hunt on one scenario. `clock_s` is real time; `on_progress` hears the tally after each schedule.

    The natural schedule is played with each of the `loads`, lightest first, until one has found something. The lightest
    is kept for all other schedules, unless it was vacuous or a later one showed an operation that meets others there.
    """

    scenario: Scenario
    options: RunOptions
    plan: HuntPlan
    searcher: Searcher
    root: Path
    workers: int
    clock_s: Callable[[], float]
    on_progress: Callable[[HuntTally], None] = lambda tally: None
    loads: tuple[Overrides, ...] = (Overrides(),)
    tally: HuntTally = field(default_factory=HuntTally, init=False)
    _started_s: float = field(default=0.0, init=False)
    _proposed: int = field(default=0, init=False)  # schedules so far
    _killed: bool = field(default=False, init=False)  # a worker was killed; another one would need as much memory
    _causes: set[str] = field(default_factory=set, init=False)  # signatures of all that was found

    def run(self) -> HuntTally:
        """Hunt until something is found or the budget is spent; Ctrl-C, or a killed worker, ends it early."""
        self._started_s = self.clock_s()
        with LocalPool(self.workers, calls_each=None) as pool:
            others = self._proposals()
            try:
                self._choose_load(pool)
                for proposed, result in pool.results(play, others):
                    self._take(proposed, result)
            except KeyboardInterrupt:
                self.tally.interrupted = True  # this ends the proposals: only schedules under way still come
                for proposed, result in pool.results(play, others):
                    self._take(proposed, result)
        self._report()
        return self.tally

    def _choose_load(self, pool: LocalPool) -> None:
        """Play the natural schedule, which tells the searcher how much there is to search, and choose the load."""
        chosen: Played | None = None
        for load in self.loads:
            if self._is_over:
                return
            arm, schedule = self.searcher.propose(0)
            options = replace(self.options, overrides=load, schedule=schedule)
            ((proposed, result),) = pool.results(play, iter([self._proposed_as(arm, options)]))
            played = self._take(proposed, result)
            if chosen is None or chosen.word == "vacuous" or {*played.operations} - {*chosen.operations}:
                chosen, self.options = played, options
        if chosen is not None:
            self.searcher.learn("natural", chosen)  # its steps are those that the next schedules choose from

    def _proposals(self) -> Iterator[_Proposed]:
        """Yield schedules to play until the hunt is over; each is chosen when a worker is free for it."""
        while not self._is_over:
            yield self._propose()

    @property
    def _is_over(self) -> bool:
        """Return whether no further schedule is to be proposed."""
        plan, tally = self.plan, self.tally
        late = plan.time_s is not None and self.clock_s() - self._started_s >= plan.time_s
        enough = bool(tally.caught) and not plan.everything
        return tally.interrupted or self._killed or late or enough or self._proposed >= plan.budget

    def _propose(self) -> _Proposed:
        """Return the next schedule to play."""
        arm, schedule = self.searcher.propose(self._proposed)
        return self._proposed_as(arm, replace(self.options, schedule=schedule))

    def _proposed_as(self, arm: str, options: RunOptions) -> _Proposed:
        self._proposed += 1
        return _Proposed(self.scenario, options, str(self.root), number=self._proposed - 1, arm=arm)

    def _take(self, proposed: _Proposed, result: Played | Died) -> Played:
        """Count a schedule that was played and return it; learn from it, and prove what it found that is new."""
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
        new = [each for each in played.found if each.layer in self.plan.layers and self._add_cause(each.signature)]
        if new:
            proved = self._prove(played)
            tally.caught += [_caught(each, played, proposed, proved) for each in new]
        else:
            discard(played)
        self._report()
        return played

    def _add_cause(self, signature: str) -> bool:
        """Add a cause to those found, and return whether it is new and there was room."""
        if signature in self._causes or len(self._causes) >= FINDINGS_MAX:
            return False
        self._causes.add(signature)
        return True

    def _prove(self, played: Played) -> bool | None:
        """Play a schedule again in a new process; return whether it came to the same run, None if it could not."""
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
        """Tell the listener how the hunt stands."""
        self.tally.seconds = self.clock_s() - self._started_s
        self.on_progress(self.tally)


def _caught(found: Finding, played: Played, proposed: _Proposed, proved: bool | None) -> Caught:
    return Caught(
        found.signature, found.layer, found.detector, found.claim, played.token, played.run_dir, proposed.number,
        proposed.arm, proved,
    )  # fmt: skip
