"""The scheduler of one engine: admission, the next step, its results, release.

submit ─> Admission ─> Planner ─> Batch ─ ─ device ─ ─> Results ─> Release
             ^                                                        │
             └──────────────── rows and pages ────────────────────────┘
"""

from repro.base.probe import Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.guards import Guards
from repro.serve.kv.radix.invariants import check_tree
from repro.serve.kv.tiers import HiCache
from repro.serve.sched.admission import Admission
from repro.serve.sched.batch import Batch
from repro.serve.sched.keys import CacheKeys
from repro.serve.sched.plan import Planner
from repro.serve.sched.release import Release
from repro.serve.sched.results import Prefilled, Results
from repro.serve.sched.rows import Staging
from repro.serve.sched.sampling import Chosen
from repro.serve.sched.state import Requests, Vocabulary


class Scheduler:
    """Owner of all requests and of their pages, which its parts share."""

    def __init__(
        self,
        config: EngineConfig,
        device: Device,
        cache: HiCache,
        guards: Guards,
        probes: Probes,
        vocabulary: Vocabulary,
        prefilled: Prefilled | None = None,
    ) -> None:
        keys = CacheKeys(config.speculative_drafts > 0, vocabulary.size)
        self._cache = cache
        self.requests = Requests(config, device, probes)
        self.admission = Admission(self.requests, cache, keys, vocabulary)
        self.release = Release(self.requests, cache, keys, guards)
        self._planner = Planner(self.requests, cache, self.admission, self.release)
        self._results = Results(self.requests, self.release, vocabulary, prefilled)

    @property
    def busy(self) -> bool:
        """Return whether any request waits or runs."""
        return bool(self.requests.waiting or self.requests.running or self.requests.arrived)

    def abort(self, request_id: str) -> None:
        """End a request at whatever stage it is; its pages go back when the scheduler next runs."""
        request = self.requests.by_id.get(request_id)
        if request is not None:
            request.aborted = True

    def next_batch(self, staging: Staging) -> Batch | None:
        """Return the next step, or None when nothing can run now."""
        requests = self.requests
        for request, first in self.admission.seat_arrived(staging):  # prefilled by another worker, with a first token
            self._results.take(request, first, verified=False)
        members, prefill = self._planner.plan(staging)
        if not members:
            seated = {seat.row for seat in staging.prompts}  # their first token has ended these answers
            assert not any(request.row in seated for request in requests.running), "no step uploads a running row"
            return None
        loads = self._cache.start_loading()
        requests.counts.steps += 1
        drafts = 0 if prefill else requests.config.speculative_drafts
        replays = prefill and sum(member.count for member in members) <= requests.config.graph_tokens_max
        return Batch(requests.counts.steps, prefill, tuple(members), staging, loads, drafts, replays)

    def commit(self, batch: Batch, chosen: Chosen | None) -> None:
        """Take the results of a step that has run."""
        self._results.commit(batch, chosen)

    def check_idle(self, outside_pages: int = 0) -> None:
        """Assert of an idle engine that no page is lost: free + cached + outside = total; no pin and no row is held."""
        assert not self.busy and not self.requests.held and not self._cache.pending
        tree, cache = self._cache.tree, self._cache
        check_tree(tree)
        cache.device_pages.check()
        cache.host_pages.check()
        assert tree.protected_pages == 0, f"{tree.protected_pages} pages are still pinned"
        device = cache.device_pages.free_pages + tree.device_pages_total + outside_pages
        assert device == cache.device_pages.num_pages, f"{device} device pages accounted for"
        host = cache.host_pages.free_pages + tree.host_pages_total
        assert host == cache.host_pages.num_pages, f"{host} host pages accounted for"
        assert len(self.requests.free_rows) == self.requests.config.rows
