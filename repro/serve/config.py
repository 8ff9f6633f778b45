"""The engine's settings. Sizes are configuration, never constants."""

from typing import Literal

import msgspec

Numerics = Literal["tensors", "stamps"]
WritePolicy = Literal["write_through", "write_through_selective", "write_back"]
FreeList = Literal["lifo", "fifo", "deferred_sorted"]
DRAFTS_MAX = 8  # a longer chain is hardly ever right to its end


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
    free_list: FreeList = "lifo"
    index_store_waits: bool = False
    copy_group_pages: int = 16  # pages that one copy operation moves
    speculative_drafts: int = 0  # tokens that the MTP layer drafts for each decode step; 0: no speculation
    cache_check: bool = True  # verify the pools' invariants whenever the engine is idle

    def __post_init__(self) -> None:
        if self.context_tokens > self.device_pages * self.page_tokens // 2:
            raise ValueError(
                f"context_tokens = {self.context_tokens}: two such requests don't fit device_pages = "
                f"{self.device_pages} of {self.page_tokens} tokens; raise device_pages"
            )
        if self.context_tokens % self.page_tokens or self.chunk_tokens < 1:
            raise ValueError("context_tokens must be whole pages and chunk_tokens at least 1")
        if not 0 <= self.speculative_drafts <= DRAFTS_MAX:
            raise ValueError(
                f"speculative_drafts = {self.speculative_drafts}: must be between 0 (no speculation) and {DRAFTS_MAX}"
            )


CONFIGS = {
    "tiny-hicache": EngineConfig(),
    "tiny": EngineConfig(name="tiny", hicache=False),
}
