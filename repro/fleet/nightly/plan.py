"""The runs of a night in their order, and which of their results count.

What counts depends on the order of the plan and never on the order in which runs end: so a night on many machines,
or one that was killed and resumed, comes to the same verdict as one on a single core.
"""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from repro.base.errors import ScenarioError, UsageError, nearest
from repro.base.toml import to_toml
from repro.fault import defects
from repro.fleet.nightly.job import Job, JobResult, Role
from repro.fleet.nightly.sequential import Known, runs_until_known
from repro.fleet.nightly.suite import SEEDS_MAX, Case, Suite
from repro.load.wire import Api
from repro.scenario.schema import Scenario, parse

BUNDLED: Literal["bundled"] = "bundled"
CLIENT_POINTS = "client."  # faults that reach a server at a URL


class Target(msgspec.Struct, frozen=True):
    """What a night is aimed at: the bundled stack, with a defect perhaps, or a server at a URL.

    The `reference` is asked the same, for the gate of throughput: another server, or the correct bundled stack.
    """

    url: str = ""
    api: Api = "chat"
    defect: str = ""
    reference: str = ""  # URL, BUNDLED, or "" for none

    def check(self) -> None:
        """Raise UsageError for what no run could be aimed at."""
        if self.defect and self.defect not in defects.DEFECTS:
            close = nearest(self.defect, defects.DEFECTS)
            raise UsageError(f'--defect {self.defect}: there is no such defect; nearest: "{close}"')
        if self.defect and self.url:
            raise UsageError("--defect needs the bundled stack: a defect cannot be put into a server at a URL")
        if self.api != "chat" and not self.url:
            raise UsageError(f"--api {self.api} needs a server at a URL; the bundled stack is asked over its chat API")
        if self.reference not in ("", BUNDLED) and not self.url:
            raise UsageError("--reference URL goes with --target URL: virtual and real time do not compare")
        if self.reference == BUNDLED and (self.url or not self.defect):
            raise UsageError(
                f"--reference {BUNDLED} is the correct bundled stack beside one with --defect; beside a server "
                "give another server's URL"
            )


class Plan:
    """The jobs of a night."""

    def __init__(self, suite: Suite, target: Target, first_seed: int) -> None:
        self.suite = suite
        self.target = target
        self.first_seed = first_seed
        self.open_ended = suite.budget.time_s is not None or suite.budget.requests is not None
        self.rows: list[tuple[Case, Role]] = [(case, role) for case in suite.cases for role in self._roles(case)]
        self._texts = {
            (case.label, role): self._text(scenario, role)
            for case, scenario in zip(suite.cases, suite.scenarios, strict=True)
            for role in self._roles(case)
        }

    def seeds(self, case: Case, role: Role) -> int:
        """Return the most seeds that are run; with a budget, silent cases run beyond the number in the suite."""
        return SEEDS_MAX if self.open_ended and role != "found" else case.seeds

    def jobs(self) -> Iterator[Job]:
        """Yield the jobs in their order: the first seed of every row, then the second."""
        for round_ in range(max(self.seeds(case, role) for case, role in self.rows)):
            for case, role in self.rows:
                if round_ < self.seeds(case, role):
                    yield self._job(case, role, self.first_seed + round_)

    def counted(self, results: Mapping[str, JobResult]) -> list[JobResult]:
        """Return the results that count, in order: not what ran ahead of a decision or of a budget's end."""
        known = self.known(results)
        requests_max = self.suite.budget.requests
        counted: list[JobResult] = []
        requests = left = 0
        for job in self.jobs():
            if left == len(results) or (requests_max is not None and requests >= requests_max):
                break
            result = results.get(job.key)
            if result is None:
                continue
            left += 1
            if not self.needless(job, known):
                counted.append(result)
                requests += result.requests
        return counted

    def needless(self, job: Job, known: Mapping[tuple[str, Role], tuple[int, Known]]) -> bool:
        """Return whether a job comes after its case was decided: it need not run, and does not count if it did."""
        decision = known.get((job.case, job.role))
        return decision is not None and job.seed - self.first_seed >= decision[0]

    def known(self, results: Mapping[str, JobResult]) -> dict[tuple[str, Role], tuple[int, Known]]:
        """Return of cases with a sequential test after how many runs what is known, from the seeds without a gap."""
        known: dict[tuple[str, Role], tuple[int, Known]] = {}
        for case, role in self.rows:
            if case.sequential is None or role != "silent":
                continue
            runs = self._runs_in_order(case, role, results)
            decision = runs_until_known(case.sequential, runs)
            if decision is not None:
                known[case.label, role] = decision
        return known

    def _runs_in_order(self, case: Case, role: Role, results: Mapping[str, JobResult]) -> Iterator[tuple[int, int]]:
        for seed in range(self.first_seed, self.first_seed + self.seeds(case, role)):
            result = results.get(f"{case.label}.{role}.{seed}")
            if result is None:
                return
            yield sum(hit > 0 for hit, _ in result.judged_sessions), len(result.judged_sessions)

    def _roles(self, case: Case) -> list[Role]:
        """Return the roles that are run of a case; a server cannot be given a defect, so it has no "found"."""
        roles: list[Role] = [check for check in case.check if check == "silent" or not self.target.url]
        return [*roles, *(["reference"] if self.target.reference and "silent" in roles else [])]  # type: ignore[list-item]

    def _job(self, case: Case, role: Role, seed: int) -> Job:
        name, text, control = self._texts[case.label, role]
        url = {"reference": self.target.reference.removeprefix(BUNDLED), "silent": self.target.url}.get(role, "")
        return Job(
            name, text, seed, control, picker=case.picker, url=url, api=self.target.api, case=case.label, role=role
        )

    def _text(self, scenario: Scenario, role: Role) -> tuple[str, str, bool]:
        """Return a scenario's name and file as a role runs it, and whether as control."""
        if role == "found":
            return scenario.name, scenario.source, False
        if self.target.url:
            return scenario.name, to_toml(_for_server(tomllib.loads(scenario.source))), False
        if self.target.defect and role == "silent":
            tables = tomllib.loads(scenario.source) | {"defects": [self.target.defect]}
            try:
                text = to_toml(tables)
                parse(text, scenario.name, "--defect")
                return scenario.name, text, False
            except ScenarioError:  # it takes a setting that this target lacks: it could not show here
                return scenario.name, scenario.source, True
        return scenario.name, scenario.source, True


def _for_server(tables: dict[str, Any]) -> dict[str, Any]:
    """Return a scenario without what only the bundled stack has: its defects, points and floors."""
    faults = [fault for fault in tables.get("fault", ()) if fault["at"].startswith(CLIENT_POINTS)]
    rest = {key: value for key, value in tables.items() if key not in ("fault", "exercise", "defects")}
    return rest | ({"fault": faults} if faults else {})
