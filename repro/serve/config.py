"""The engine's settings. Sizes are configuration, never constants."""

from typing import Literal

import msgspec

Numerics = Literal["tensors", "stamps"]
WritePolicy = Literal["write_through", "write_through_selective", "write_back"]
FreeList = Literal["lifo", "fifo", "deferred_sorted"]
DRAFTS_MAX = 8  # a longer chain is hardly ever right to its end
PD_ACTORS_MAX = 63  # hosts and streams that the detectors have clocks for
CONTEXT_SHARE_MAX = 0.8  # one request's share of the device pages: loads and writes under way hold some too
RANKS_MAX = 12  # a rank has its host, and compute, collective, load and write streams


class PdConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prefill/decode disaggregation: how many workers, and the clocks of their protocol.

    `transfer_timeout_s` is how long a decode worker waits for a prompt's rows, from the request's arrival;
    `destination_timeout_s` how long a prefill worker waits to be told where to write. An abort that is not
    answered within `ack_timeout_s` is said again, `ack_tries` times in all; then the pages are quarantined.
    """

    prefill: int = 1
    decode: int = 1
    decode_pages: int = 0  # device pages of a decode worker; 0: as many as device_pages
    lanes: int = 2  # queue pairs of a prefill worker: a request's chunks take turns and may land out of order
    slots: int = 64  # metadata slots of a decode worker
    message_us: float = 50.0  # one way between two hosts
    transfer_timeout_s: float = 60.0
    destination_timeout_s: float = 60.0
    ack_timeout_s: float = 1.0
    ack_tries: int = 5

    def __post_init__(self) -> None:
        for key in ("prefill", "decode", "lanes", "slots", "ack_tries"):
            if getattr(self, key) < 1:
                raise ValueError(f"pd.{key} = {getattr(self, key)}; must be at least 1")
        for key in ("message_us", "transfer_timeout_s", "destination_timeout_s", "ack_timeout_s"):
            if not 0 < getattr(self, key) <= 1e6:
                raise ValueError(f"pd.{key} = {getattr(self, key)}; must be above 0 and at most 1,000,000")


class LayerSplitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Context parallelism over ranks: each computes its part of a step's tokens.

    `split`: every rank keeps the KV of some layers only, and gets the others' by broadcast into `scratch`
    buffers, of one layer each, which take turns; without, every rank keeps all layers. `prefetch` sends a layer
    while the one before it still computes. A rank that is not heard of for `timeout_s` ends the stack.
    """

    ranks: int = 2
    split: bool = True
    scratch: int = 1
    prefetch: bool = False
    message_us: float = 20.0  # a message from the scheduler's process to a rank's takes this long, over shared memory
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= RANKS_MAX:
            raise ValueError(f"layersplit.ranks = {self.ranks}; must be between 1 and {RANKS_MAX}")
        if self.scratch not in (1, 2):
            raise ValueError(f"layersplit.scratch = {self.scratch}; one buffer, or two that take turns")
        for key in ("message_us", "timeout_s"):
            if not 0 < getattr(self, key) <= 1e6:
                raise ValueError(f"layersplit.{key} = {getattr(self, key)}; must be above 0 and at most 1,000,000")


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One bundled stack. Pages hold `page_tokens` tokens; all counts are for the whole engine."""

    name: str = "tiny-hicache"
    model: str = "bundled"  # the checkpoint in the package, or a folder with a config.json
    numerics: Numerics = "tensors"
    cost: str = "h100x8-glm5"
    page_tokens: int = 64
    device_pages: int = 640
    host_pages: int = 1536
    rows: int = 32  # requests that may run at once
    context_tokens: int = 8192  # prompt and answer together
    chunk_tokens: int = 512  # prefill tokens of a step
    waiting_max: int = 256  # requests queued; one more is refused with 503
    hicache: bool = True
    write_policy: WritePolicy = "write_through"
    reclaim_host: bool = False  # under write_back: what is on the device too loses its host pages first
    storage_pages: int = 0  # pages of the storage tier below the host, in files; 0: there is none
    storage_folder: str = ""  # its files stay in this folder; "": a temporary folder that ends with the engine
    free_list: FreeList = "lifo"
    index_store_waits: bool = False
    copy_group_pages: int = 16  # pages that one copy operation moves
    pd: PdConfig | None = None  # None: prefill and decode in one engine
    layersplit: LayerSplitConfig | None = None  # None: one rank; then device_pages and host_pages are of all layers
    graph_tokens_max: int = 0  # prefill steps of at most so many tokens replay a captured graph; 0: none does
    staging_buffers: int = 3  # pinned buffers: the host prepares step N+1 while N runs and N-1 is read
    upload_stream: bool = False  # whether request rows are uploaded beside the forward, on a stream of their own
    retract: bool = False  # admits by the prompt, not the longest answer, and retracts the youngest when pages run out
    prefix_cache: bool = True  # whether finished requests leave their pages to the radix tree
    speculative_drafts: int = 0  # tokens that the MTP layer drafts for each decode step; 0: no speculation
    checksums: bool = False  # whether a read compares the rows' values too, by a checksum that travels with the stamp
    cache_check: bool = True  # verify the pools' invariants whenever the engine is idle

    @property
    def in_words(self) -> str:
        """Return the settings that distinguish this configuration, in words."""
        parts = [f"{self.context_tokens:,} tokens of context", f"{'with' if self.hicache else 'without'} host tier"]
        if self.storage_pages:
            parts.append(f"storage for {self.storage_pages:,} pages")
        if self.speculative_drafts:
            parts.append(f"{self.speculative_drafts} drafts a step")
        if self.pd is not None:
            parts.append(f"{self.pd.prefill} prefill and {self.pd.decode} decode workers")
        if self.layersplit is not None:
            layers = "layers split" if self.layersplit.split else "all layers on each"
            parts.append(f"{self.layersplit.ranks} context-parallel ranks, {layers}")
        return ", ".join(parts)

    def __post_init__(self) -> None:
        splits = self.layersplit is not None and self.layersplit.split  # its pages are counted when the model is known
        if not splits and self.context_tokens > CONTEXT_SHARE_MAX * self.device_pages * self.page_tokens:
            raise ValueError(
                f"context_tokens = {self.context_tokens}: more than {CONTEXT_SHARE_MAX:.0%} of device_pages = "
                f"{self.device_pages} of {self.page_tokens} tokens, and others need room too; raise device_pages"
            )
        if self.reclaim_host and self.write_policy != "write_back":
            raise ValueError(
                f'reclaim_host goes with write_policy = "write_back", not "{self.write_policy}": what is written '
                "through keeps its copy on the host; drop one"
            )
        self._check_storage()
        if self.pd is not None:
            self._check_actors(self.pd)
        for other in ("pd", "upload_stream", "speculative_drafts", "graph_tokens_max"):
            if self.layersplit is not None and getattr(self, other):
                raise ValueError(f"layersplit and {other} don't go together: the ranks have no such part; drop one")
        for other in ("pd", "layersplit", "speculative_drafts"):
            if self.retract and getattr(self, other):
                raise ValueError(f"retract and {other} don't go together: only a plain engine retracts; drop one")
        if self.retract and not self.prefix_cache:
            raise ValueError("retract takes prefix_cache: a retracted request comes again by what the tree has kept")
        decode_pages = 0 if self.pd is None else self.pd.decode_pages
        if decode_pages and self.context_tokens > CONTEXT_SHARE_MAX * decode_pages * self.page_tokens:
            raise ValueError(
                f"context_tokens = {self.context_tokens}: more than {CONTEXT_SHARE_MAX:.0%} of pd.decode_pages = "
                f"{decode_pages} of {self.page_tokens} tokens, and others need room too; raise pd.decode_pages"
            )
        if self.context_tokens % self.page_tokens or self.chunk_tokens < 1:
            raise ValueError("context_tokens must be whole pages and chunk_tokens at least 1")
        if self.staging_buffers < 1:
            raise ValueError(f"staging_buffers = {self.staging_buffers}: a step's rows need at least 1")
        if self.graph_tokens_max < 0:
            raise ValueError(f"graph_tokens_max = {self.graph_tokens_max}: must be at least 0 (no graphs)")
        if not 0 <= self.speculative_drafts <= DRAFTS_MAX:
            raise ValueError(
                f"speculative_drafts = {self.speculative_drafts}: must be between 0 (no speculation) and {DRAFTS_MAX}"
            )

    def _check_storage(self) -> None:
        """Raise ValueError for a storage tier that this stack can't have."""
        if self.storage_folder and not self.storage_pages:
            raise ValueError("storage_folder says where, and storage_pages = 0 that there is no storage; set it too")
        if self.storage_pages and not self.hicache:
            raise ValueError("storage_pages: the storage tier is below the host tier, and hicache = false has none")
        for other in ("pd", "layersplit"):
            if self.storage_pages and getattr(self, other):
                raise ValueError(f"{other} and storage_pages don't go together: one engine alone has storage; drop one")

    def _check_actors(self, pd: PdConfig) -> None:
        """Raise ValueError for more hosts and streams than the detectors have clocks for.

        A prefill worker has its host, compute, load, write and metadata streams and its lanes; a decode worker
        its host, compute, load, write and slots; either may have an upload stream; the router is a host.
        """
        actors = pd.prefill * (5 + pd.lanes + self.upload_stream) + pd.decode * (5 + self.upload_stream) + 1
        if actors > PD_ACTORS_MAX:
            raise ValueError(
                f"pd.prefill = {pd.prefill}, pd.decode = {pd.decode}, pd.lanes = {pd.lanes}: {actors} streams and "
                f"hosts; one simulation tells {PD_ACTORS_MAX} apart, so take fewer workers or lanes"
            )


CONFIGS = {
    "tiny-hicache": EngineConfig(),
    "tiny": EngineConfig(name="tiny", hicache=False),
    "tiny-mtp": EngineConfig(name="tiny-mtp", speculative_drafts=3),
    "tiny-layersplit": EngineConfig(name="tiny-layersplit", layersplit=LayerSplitConfig(ranks=4)),
    "tiny-pd": EngineConfig(name="tiny-pd", pd=PdConfig(prefill=2)),
}
