"""Defects: the faulty behaviour of real public bugs, each as guards that are left out or decide wrongly.

Nothing else in the stack orders what a guard orders, so leaving it out leaves the race to time. Adding a defect is one
row of `DEFECTS`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from repro.base.errors import ScenarioError, nearest
from repro.base.probe import Component
from repro.serve.config import EngineConfig
from repro.serve.device.base import Event, Stream
from repro.serve.guards import Guards
from repro.serve.guards.waits import wait_for_chunk

SGLANG = "https://github.com/sgl-project/sglang/"
VLLM = "https://github.com/vllm-project/vllm/"
ASCEND = "https://github.com/vllm-project/vllm-ascend/"


@dataclass(frozen=True)
class Defect:
    """One bug of the bank: where it was public, what races, and which guards are replaced by what."""

    name: str
    reference: str
    races: str
    guards: Mapping[str, Callable[..., Any]]
    needs: str = ""  # the setting of the target without which it can't show
    accounts_hold: bool = True  # False: pages may be released twice, so an idle engine's accounts need not add up

    def apply(self, guards: Guards) -> Guards:
        """Return the guards of a stack that has this defect."""
        return guards.replaced(**self.guards)


CHUNK_PAGES = 4  # LM #2671 retrieves whole chunks, and a chunk is longer than a page
PRODUCER_TIMEOUT_S = 5.0  # after which VA #11140's producer frees what it has offered


def _no_wait(*_: object) -> None:
    """Order nothing."""


async def _at_once(*_: object) -> bool:
    """Order nothing on the host; where a guard asks whether something is safe, say yes."""
    return True


def _leave_it_to_the_loader(enqueue: Callable[[], None]) -> None:
    """Let another thread of the host enqueue it, while this one launches the step that waits."""
    asyncio.get_running_loop().call_soon(enqueue)


def _wait_for_the_last_chunk_only(transfer: Stream, stored: Event, last: bool) -> None:
    if last:
        wait_for_chunk(transfer, stored, last)


async def _wait_until_the_timeout(drained: Awaitable[None]) -> None:
    await asyncio.wait((asyncio.ensure_future(drained),), timeout=PRODUCER_TIMEOUT_S)


def _root_of_equal_shares(owner: int, layer: int, layers: int, ranks: int) -> int:
    """Return the owner as if all ranks had equally many layers, and the last one the rest."""
    return min(layer // (layers // ranks), ranks - 1)


def _look_at_the_latents_only(failed: frozenset[Component]) -> bool:
    return "latent" not in failed


# One row a defect: its name and public report, what races, and the guards that it replaces.
_BANK = (
    Defect("hicache_early_read", SGLANG + "pull/22811",
        "the indexer reads a layer's index keys before their load-back has finished",
        {"before_index_read": _no_wait}),
    Defect("hicache_draft_not_restored", SGLANG + "issues/32176",
        "load-back restores the model's layers and leaves out the draft layer",
        {"loaded_layers": lambda model, draft: tuple(model)}, needs="speculative_drafts"),
    Defect("hicache_wrapper_no_wait", SGLANG + "issues/38217",
        "a pool that wraps another turns off the inner one's wait and forgets its own",
        {"before_index_read": _no_wait, "before_latent_read": _no_wait}),
    Defect("hicache_unrecorded_event", SGLANG + "issues/38472",
        "a step waits for a load-back that another thread is still to enqueue: that waits for nothing",
        {"on_load_start": _leave_it_to_the_loader}),
    Defect("hicache_graph_replay", VLLM + "issues/29608",
        "a short prefill replays a captured graph, and the waits between its kernels were host code",
        {"before_graph_replay": _no_wait}, needs="graph_tokens_max"),
    Defect("hicache_writeback_raw", VLLM + "issues/45704",
        "a page is backed up before the kernel that writes it has run",
        {"before_write_back": _no_wait}),
    Defect("hicache_partial_prefetch", SGLANG + "issues/30057",
        "a prefetch from storage restores latents, and counts as whole without their index keys",
        {"page_restored": _look_at_the_latents_only}, needs="storage_pages"),
    Defect("hicache_host_evict_early", SGLANG + "pull/31427",
        "host pages are reclaimed while the load-back that reads them is in flight",
        {"release_host_at_enqueue": lambda: True}, needs="reclaim_host"),
    Defect("hicache_load_war", VLLM + "issues/47282",
        "load-back overwrites a page that an earlier step still reads",
        {"before_page_reuse": _no_wait}),
    Defect("hicache_index_not_restored", SGLANG + "issues/17085",
        "load-back restores the latents and leaves out the index keys",
        {"loaded_components": lambda components: ("latent",)}),
    Defect("async_step_after_free", VLLM + "issues/45357",
        "a step in flight still writes into pages that were given back and promised to a remote writer",
        {"before_pages_offered": _at_once}, needs="pd"),
    Defect("lm_chunk_align_overwrite", "https://github.com/LMCache/LMCache/issues/2671",
        "load-back begins at a chunk's start and overwrites shared pages that are on the device already",
        {"first_loaded": lambda hit_pages: hit_pages - hit_pages % CHUNK_PAGES}),
    Defect("sched_double_free", "https://github.com/sgl-project/mini-sglang/issues/111",
        "an abort frees a request whose step is in flight, and the step's result frees it again",
        {"still_owner": lambda aborted: aborted, "on_double_free": _no_wait}, accounts_hold=False),
    Defect("sched_retract_insert", SGLANG + "issues/38319",
        "a request is retracted, and pages that its chunks have put into the prefix tree are freed with its own",
        {"kept_by_tree": lambda hit_pages, shared_pages: hit_pages, "on_double_free": _no_wait},
        needs="retract", accounts_hold=False),
    Defect("sched_row_recycled", SGLANG + "issues/18803",
        "an ended request's row is given to the next one while a step in flight still reads it",
        {"before_row_reuse": _no_wait}, needs="upload_stream"),
    Defect("sched_pinned_rewrite", "https://github.com/NVIDIA/TensorRT-LLM/pull/15546",
        "the host rewrites a pinned buffer that an asynchronous copy is still to read",
        {"before_staging_reuse": _at_once}),
    Defect("pd_reuse_before_drain", SGLANG + "issues/24527",
        "decode gives an aborted request's pages to another while prefill still writes into them",
        {"before_reclaim": _at_once}, needs="pd"),
    Defect("pd_ack_means_received", SGLANG + "issues/31357",
        "prefill acknowledges an abort when it has received it, not when its writes have drained",
        {"before_safe_to_reclaim": _at_once}, needs="pd"),
    Defect("pd_producer_timeout", ASCEND + "issues/11140",
        "prefill frees a prompt's pages on a timeout of its own, before the network has read them",
        {"before_source_release": _wait_until_the_timeout}, needs="pd"),
    Defect("pd_chunk_read_early", SGLANG + "issues/33970",
        "all chunks of a prompt but the last are read by the network while their forward still runs",
        {"before_transfer_read": _wait_for_the_last_chunk_only}, needs="pd"),
    Defect("pd_metadata_slot_reuse", SGLANG + "issues/17430",
        "an aborted request's metadata slot is reused while its first token is still to be written",
        {"before_slot_reuse": _at_once}, needs="pd"),
    Defect("pd_state_failed_aux_ok", SGLANG + "issues/30890",
        "the transfer of the index keys failed, and success is reported because the latents arrived",
        {"transfer_arrived": _look_at_the_latents_only}, needs="pd"),
    Defect("layersplit_early_broadcast", ASCEND + "pull/17073",
        "a layer is broadcast to the other ranks before its owner has loaded it back",
        {"before_broadcast": _no_wait}, needs="layersplit"),
    Defect("layersplit_scratch_reuse", ASCEND + "pull/16094",
        "the next layer is sent ahead into a scratch buffer that attention still reads",
        {"before_scratch_reuse": _no_wait}, needs="layersplit"),
    Defect("layersplit_silent_noop", SGLANG + "pull/29421",
        "the communicator is disabled: a broadcast does nothing, and scratch keeps an earlier layer",
        {"before_broadcast_call": _no_wait}, needs="layersplit"),
    Defect("layersplit_wrong_owner", SGLANG + "pull/29421",
        "the broadcast takes another rank for a layer's owner, which sends what it has in its scratch buffer",
        {"broadcast_root": _root_of_equal_shares}, needs="layersplit"),
    Defect("layersplit_patch_in_flight", SGLANG + "pull/29421",
        "new rows are put into pages that a broadcast on its way still writes, or reads on the owner",
        {"before_patch": _no_wait}, needs="layersplit"),
)  # fmt: skip

DEFECTS: dict[str, Defect] = {defect.name: defect for defect in _BANK}


def with_defects(names: tuple[str, ...], where: str) -> Guards:
    """Return the guards of a stack that has these defects; raises ScenarioError for an unknown one."""
    guards = Guards()
    for name in names:
        if name not in DEFECTS:
            raise ScenarioError(f'{where}: "{name}" is no defect; nearest: "{nearest(name, DEFECTS)}"')
        guards = DEFECTS[name].apply(guards)
    return guards


def config_with_defects(names: tuple[str, ...], config: EngineConfig) -> EngineConfig:
    """Return the configuration of a stack with these defects: without the check of pages where a defect loses some."""
    if all(DEFECTS[name].accounts_hold for name in names):
        return config
    return msgspec.structs.replace(config, cache_check=False)


def check(names: tuple[str, ...], config: EngineConfig, where: str) -> None:
    """Raise ScenarioError for a defect that is unknown, or that could never show on such a target."""
    with_defects(names, where)
    for name in names:
        needs = DEFECTS[name].needs
        if needs and not getattr(config, needs):
            raise ScenarioError(f'{where}: "{name}" takes a [target] with {needs}: without it nothing can go wrong')
