"""Every place where ordering keeps the KV cache safe, by name.

The stack calls each guard where its hazard is, and nothing else orders those operations. The
defaults are the correct behaviour; a frozen `Guards` with one of them replaced is a defective stack.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from repro.serve.device.base import Event, Stream


class LayerLoads(Protocol):
    """The load-back that a batch depends on: one event per layer."""

    def layer_done(self, layer: int) -> Event:
        """Return the event behind the last copy of `layer`; valid for the batch."""


LayerGuard = Callable[[Stream, LayerLoads | None, int], None]
EventGuard = Callable[[Stream, Event], None]
HostGuard = Callable[[Event], Awaitable[None]]
LayersGuard = Callable[[range], range]


def wait_for_latent_load(compute: Stream, loads: LayerLoads | None, layer: int) -> None:
    """Load-back still writes later layers on its own stream. Without this wait attention gathers
    the latents of the page's previous owner."""
    if loads is not None:
        compute.wait(loads.layer_done(layer), "latents of this layer are loaded back")


def wait_for_index_load(compute: Stream, loads: LayerLoads | None, layer: int) -> None:
    """Load-back still writes later layers on its own stream. Without this wait the indexer scores
    the page's previous owner and picks wrong tokens, though the latents are awaited."""
    if loads is not None:
        compute.wait(loads.layer_done(layer), "index keys of this layer are loaded back")


def wait_for_draft_load(compute: Stream, loads: LayerLoads | None, layer: int) -> None:
    """Load-back brings the draft layer last. Without this wait the draft layer reads the pages' previous
    owner: its drafts are refused, and answers come slower, though none is wrong."""
    if loads is not None:
        compute.wait(loads.layer_done(layer), "rows of the draft layer are loaded back")


def load_all_layers(layers: range) -> range:
    """Load-back copies every layer, the draft layer behind the model's own. A draft layer that is left out
    drafts from the pages' previous owner until the prefix is computed anew."""
    return layers


def store_alone(compute: Stream, loads: LayerLoads | None, layer: int) -> None:
    """New rows go to pages of their own, so the store need not wait for a load-back."""


def store_after_load(compute: Stream, loads: LayerLoads | None, layer: int) -> None:
    """The store fetches its buffer through an accessor that waits (target option
    `index_store_waits`); by accident it also orders the index read behind it."""
    if loads is not None:
        compute.wait(loads.layer_done(layer), "the index store's accessor waits for the layer")


def wait_for_last_use(load: Stream, last_use: Event) -> None:
    """Recycled pages may still be read by a step in flight. Without this wait the load-back
    overwrites what that step's attention gathers."""
    load.wait(last_use, "the last step that used these pages has finished")


def wait_for_store(write: Stream, stored: Event) -> None:
    """The kernel that writes these pages may still be queued. Without this wait the host tier
    keeps the page's previous bytes."""
    write.wait(stored, "the step that stores these pages has finished")


async def wait_for_upload(uploaded: Event) -> None:
    """The staging buffer's last asynchronous copy may not have run yet. Without this wait the host
    rewrites what that copy is still to read."""
    await uploaded.synchronize("the staging buffer's last upload has run")


@dataclass(frozen=True)
class Guards:
    """The guards of one stack."""

    before_index_store: LayerGuard = store_alone
    before_index_read: LayerGuard = wait_for_index_load
    before_latent_read: LayerGuard = wait_for_latent_load
    before_draft_read: LayerGuard = wait_for_draft_load
    loaded_layers: LayersGuard = load_all_layers
    before_page_reuse: EventGuard = wait_for_last_use
    before_write_back: EventGuard = wait_for_store
    before_staging_reuse: HostGuard = wait_for_upload
