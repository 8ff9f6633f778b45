"""The next step: chunks of prompts within the budget, or a token of each answer.

The host plans from what it knows now, which is one step behind the device: the tokens that step N samples are still
unknown when step N+1 is planned. So a request that ended in step N may ride along in step N+1; `Results` drops its
token there.

With `retract` decode steps go between the chunks of a prompt, and when decode runs out of pages the youngest request
gives its own back. It comes again, first in the queue, by prefix hit and prefill of prompt and answer so far; its
answer is the same. After SGLang's `retract_decode`.

With speculation not even the number of tokens is known. The device keeps each row's length and lays out the windows;
the host plans for the most that may come, so that every step has every request in it. (To plan a request only once
its last step is known would halve the batch.)
"""

from repro.serve.kv.tiers import HiCache
from repro.serve.sched.admission import Admission
from repro.serve.sched.batch import Member
from repro.serve.sched.release import Release
from repro.serve.sched.request import Request
from repro.serve.sched.rows import Staging
from repro.serve.sched.state import Requests


class Planner:
    """Chooses the members of the next step, and sees to their pages."""

    def __init__(self, requests: Requests, cache: HiCache, admission: Admission, release: Release) -> None:
        self._requests = requests
        self._config = requests.config
        self._cache = cache
        self._admission = admission
        self._release = release
        self._prefill_last = False  # whether the last step was one of prefill

    def plan(self, staging: Staging) -> tuple[list[Member], bool]:
        """Return the members of the next step, and whether it is one of prefill, which goes before decode."""
        members, prefill = self._choose(staging)
        if members:
            self._prefill_last = prefill
        return members, prefill

    def _choose(self, staging: Staging) -> tuple[list[Member], bool]:
        if self._config.retract and self._prefill_last and (members := self._decode(staging)):
            return members, False
        if members := self._prefill(staging):
            return members, True
        return self._decode(staging), False

    # -- prefill --------------------------------------------------------------------------------------

    def _prefill(self, staging: Staging) -> list[Member]:
        budget = self._config.chunk_tokens
        members: list[Member] = []
        for request in self._requests.running:
            if not request.prefilled and budget:
                members.append(self._chunk(request, budget))
                budget -= members[-1].count
        while budget and (admitted := self._admission.admit_next(staging)):
            members.append(self._chunk(admitted, budget))
            budget -= members[-1].count
        return members

    @staticmethod
    def _chunk(request: Request, budget: int) -> Member:
        first = request.computed
        count = min(budget, request.prefill_tokens - first)
        request.computed += count
        request.planned += request.prefilled
        return Member(request, request.row, first, count, request.prefilled, request.retractions)

    # -- decode ---------------------------------------------------------------------------------------

    def _decode(self, staging: Staging) -> list[Member]:
        members = []
        drafts = self._config.speculative_drafts
        for request in list(self._requests.running):
            if request.state != "running":
                continue  # retracted for a request before it in this loop
            if not request.prefilled or request.planned >= request.max_tokens or request.aborted:
                continue
            end = min(request.computed + request.drafted + 1 + drafts, request.limit)
            if not self._grow(request, end, staging) and not self._make_room(request, end, staging):
                continue
            window = end - request.computed
            members.append(Member(request, request.row, request.computed, window, True, request.retractions))
            request.computed += 1
            request.planned += 1
            request.drafted += drafts
        return members

    def _grow(self, request: Request, end: int, staging: Staging) -> bool:
        """Make sure that the tokens up to `end` have pages; False when there is no room right now."""
        place = len(request.pages)
        missing = -(-end // self._config.page_tokens) - place
        if missing <= 0:
            return True
        pages = self._cache.allocate(missing, request.id)
        if pages is None:
            return False
        staging.pages.append((request.row, place, pages))
        request.pages.extend(pages.tolist())
        return True

    def _make_room(self, request: Request, end: int, staging: Staging) -> bool:
        """Retract the youngest requests until `request` has its pages; False when it is retracted itself, or waits."""
        running = self._requests.running
        while self._config.retract and len(running) > 1:
            youngest = running[-1]
            self._release.retract(youngest)
            if youngest is request:
                return False
            if self._grow(request, end, staging):
                return True
        return False
