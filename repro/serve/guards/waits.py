"""Guards that order operations: each makes a stream, or the host, wait for what its hazard names."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from repro.serve.device.base import Event, Stream


class LayerLoads(Protocol):
    """The load-back that a batch depends on: one event per layer."""

    def layer_done(self, layer: int) -> Event:
        """Return the event behind the last copy of `layer`; valid for the batch."""

    @property
    def all_done(self) -> Event:
        """Return the event behind the last copy of all; valid for the batch."""


LayerGuard = Callable[[Stream, LayerLoads | None, int], None]
EventGuard = Callable[[Stream, Event], None]
HostGuard = Callable[[Event], Awaitable[None]]
ChunkGuard = Callable[[Stream, Event, bool], None]
DrainGuard = Callable[[Awaitable[None]], Awaitable[None]]
AskForSafety = Callable[[], Coroutine[Any, Any, bool]]
ReclaimGuard = Callable[[AskForSafety], Coroutine[Any, Any, bool]]
SlotGuard = Callable[[Awaitable[bool]], Awaitable[bool]]
ReplayGuard = Callable[[Stream, LayerLoads | None], None]
StartGuard = Callable[[Callable[[], None]], None]


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


def wait_for_whole_load(compute: Stream, loads: LayerLoads | None) -> None:
    """A captured graph replays its kernels without the host code between them, so no layer is awaited in it.
    Without this wait every layer of the replay may read what its load-back is still to write."""
    if loads is not None:
        compute.wait(loads.all_done, "the whole load-back is done before a graph is replayed")


def start_at_once(enqueue: Callable[[], None]) -> None:
    """`enqueue` puts a load-back on its stream and records its events. A wait for an event that is recorded
    later waits for nothing, so this comes before the step that waits."""
    enqueue()


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


def wait_for_row_users(upload: Stream, last_use: Event) -> None:
    """A step in flight may still read and write a row whose request has ended. Without this wait the row is
    the next request's already, and that step stores into its pages and writes into its tokens."""
    upload.wait(last_use, "the last step that used these rows has finished")


def wait_for_rows(compute: Stream, uploaded: Event) -> None:
    """Rows may be uploaded on a stream of their own. Without this wait the step computes what the row's
    previous request had asked for."""
    compute.wait(uploaded, "the rows of this step are uploaded")


def wait_for_chunk(transfer: Stream, stored: Event, last: bool) -> None:
    """The forward of a prompt's chunk may still run when its transfer is posted. Without this wait the
    network reads rows that are not stored yet. `last`: it is the prompt's last chunk."""
    transfer.wait(stored, "the step that stores this chunk has finished")


async def wait_for_riders(last_use: Event) -> None:
    """A step in flight may still touch pages that a request has given back: it rode along. Without this
    wait a remote write, which no stream of this device orders, meets that step."""
    await last_use.synchronize("the last step that used these pages has finished")


async def wait_for_writes(drained: Awaitable[None]) -> None:
    """A posted write can't be taken back: it reads its source and lands in its target whenever it runs.
    Without this wait the pages at either end already belong to somebody else."""
    await drained


async def ask_until_safe(ask: AskForSafety) -> bool:
    """After an abort the prefill worker may still write into the pages, or not even have begun. Only it
    knows: `ask` tells it of the abort and returns whether it has said that the pages are safe."""
    return await ask()


async def wait_for_reclaim(safe: Awaitable[bool]) -> bool:
    """A metadata slot is written like a page. Without this wait the next request reads the first token
    of an aborted one."""
    return await safe


def wait_for_owner_load(collective: Stream, loads: LayerLoads | None, layer: int) -> None:
    """The owner's load-back may still write this layer. Without this wait it broadcasts the pages' previous
    owner to all ranks, whatever they wait for themselves."""
    if loads is not None:
        collective.wait(loads.layer_done(layer), "the layer that is broadcast is loaded back")


def wait_for_scratch_readers(collective: Stream, last_use: Event) -> None:
    """A scratch buffer holds one layer after another. Without this wait a broadcast overwrites what the
    layer before still reads."""
    collective.wait(last_use, "the scratch buffer's last layer has been read")


def wait_before_patch(compute: Stream, arrived: Event) -> None:
    """New rows are put where a broadcast brings the old ones of the same pages. Without this wait the
    broadcast overwrites them (on the owner: sends pages that change while they are read)."""
    compute.wait(arrived, "the broadcast into these pages has ended")


def wait_for_broadcast(compute: Stream, arrived: Event) -> None:
    """A layer that another rank owns comes by broadcast. Without this wait the step reads what an earlier
    layer left in the scratch buffer."""
    compute.wait(arrived, "the layer has arrived from its owner")


@dataclass(frozen=True)
class Waits:
    """The guards that order."""

    before_index_store: LayerGuard = store_alone
    before_index_read: LayerGuard = wait_for_index_load
    before_latent_read: LayerGuard = wait_for_latent_load
    before_draft_read: LayerGuard = wait_for_draft_load
    before_graph_replay: ReplayGuard = wait_for_whole_load
    on_load_start: StartGuard = start_at_once
    before_page_reuse: EventGuard = wait_for_last_use
    before_write_back: EventGuard = wait_for_store
    before_staging_reuse: HostGuard = wait_for_upload
    before_row_reuse: EventGuard = wait_for_row_users
    before_row_read: EventGuard = wait_for_rows
    before_transfer_read: ChunkGuard = wait_for_chunk
    before_pages_offered: HostGuard = wait_for_riders
    before_source_release: DrainGuard = wait_for_writes
    before_safe_to_reclaim: DrainGuard = wait_for_writes
    before_reclaim: ReclaimGuard = ask_until_safe
    before_slot_reuse: SlotGuard = wait_for_reclaim
    before_broadcast: LayerGuard = wait_for_owner_load
    before_scratch_reuse: EventGuard = wait_for_scratch_readers
    before_patch: EventGuard = wait_before_patch
    before_scratch_read: EventGuard = wait_for_broadcast
