"""The hunt: plays schedules in a pool until something is found, and proves each finding before it is told."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import msgspec
from msgspec.structs import replace

from detectors.base import Layer
from repro.run.run import RunOptions
from repro.scenario.schema import Scenario
from repro.search.play import Found, Played, discard, play, players, proves
from repro.search.portfolio import Search, Searcher

KILLED = "a process of the hunt was killed (out of memory?); fewer --workers need less"
FINDINGS_MAX = 1_000  # causes; more of them is one bug that names itself anew each time


class Quarry(msgspec.Struct, frozen=True):
    """What to hunt for, and when to stop."""

    search: Search = "portfolio"
    budget: int = 200  # schedules
    time_s: float | None = None
    layers: tuple[Layer, ...] = ("ordering", "canary", "divergence", "text")  # what counts as found
    everything: bool = False  # do not stop at the first finding


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


class Hunt:
    """One hunt on one scenario. `clock_s` is real time; `told` hears how it stands after each schedule."""

    def __init__(
        self,
        scenario: Scenario,
        options: RunOptions,
        quarry: Quarry,
        searcher: Searcher,
        *,
        root: Path,
        workers: int,
        clock_s: Callable[[], float],
        told: Callable[[Tally], None] = lambda tally: None,
    ) -> None:
        self.tally = Tally()
        self._scenario = scenario
        self._options = options
        self._quarry = quarry
        self._searcher = searcher
        self._root = root
        self._workers = workers
        self._clock_s = clock_s
        self._told = told
        self._started_s = clock_s()
        self._proposed = 0
        self._broken = False  # the pool: it takes no more schedules
        self._under_way: dict[Future[Played], tuple[int, str]] = {}
        self._known: set[str] = set()

    def run(self) -> Tally:
        """Hunt until something is found or the budget is spent; Ctrl-C, or a killed process, returns what there is."""
        with players(self._workers) as pool:
            try:
                self._propose(pool)
                while self._under_way:
                    done, _ = wait(self._under_way, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in sorted(done, key=lambda each: self._under_way[each][0]):
                        self._take(future)
                    self._tell()
                    while not self._over and len(self._under_way) < self._workers and self.tally.runs:
                        self._propose(pool)
            except KeyboardInterrupt:
                self.tally.interrupted = True
                for future in self._under_way:
                    future.cancel()
        for future in [future for future in self._under_way if not future.cancelled()]:
            self._take(future)
        self._tell()
        return self.tally

    @property
    def _over(self) -> bool:
        quarry, tally = self._quarry, self.tally
        spent = self._proposed >= quarry.budget or self._is_late()
        return tally.interrupted or self._broken or spent or bool(tally.caught and not quarry.everything)

    def _is_late(self) -> bool:
        time_s = self._quarry.time_s
        return time_s is not None and self._clock_s() - self._started_s >= time_s

    def _propose(self, pool: ProcessPoolExecutor) -> None:
        number = self._proposed
        arm, schedule = self._searcher.propose(number)
        options = replace(self._options, schedule=schedule)
        self._proposed += 1
        try:
            future = pool.submit(play, self._scenario, options, self._root)
        except BrokenProcessPool as error:  # killed since the last schedule was taken
            future = Future()
            future.set_exception(error)
        self._under_way[future] = number, arm

    def _take(self, future: "Future[Played]") -> None:
        number, arm = self._under_way.pop(future)
        try:
            played, tally = future.result(), self.tally
        except BrokenProcessPool:
            self._broken = True
            played, tally = Played(self._options, error=KILLED), self.tally
        tally.runs += 1
        if played.error:
            tally.died += 1
            tally.errors.append(played.error)
        tally.vacuous += played.word == "vacuous"
        tally.unknown += played.word in ("inconclusive", "failed")
        self._searcher.learn(arm, played)
        tally.orders = len(self._searcher.orders)
        fresh = [each for each in played.found if each.layer in self._quarry.layers and self._is_fresh(each)]
        if not fresh:
            discard(played)
            return
        proved = self._proves(played)
        for each in fresh:
            tally.caught.append(
                Caught(
                    each.signature,
                    each.layer,
                    each.detector,
                    each.claim,
                    played.token,
                    played.run_dir,
                    number,
                    arm,
                    proved,
                )  # fmt: skip
            )

    def _is_fresh(self, found: Found) -> bool:
        if found.signature in self._known or len(self._known) >= FINDINGS_MAX:
            return False
        self._known.add(found.signature)
        return True

    def _proves(self, played: Played) -> bool | None:
        try:
            return proves(self._scenario, played, self._root)
        except KeyboardInterrupt:
            self.tally.interrupted = True
        except BrokenProcessPool:
            self._broken = True
            self.tally.errors.append(KILLED)
        return None

    def _tell(self) -> None:
        self.tally.seconds = self._clock_s() - self._started_s
        self._told(self.tally)
