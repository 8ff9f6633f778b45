"""Every place where ordering keeps the KV cache safe, by name.

The stack calls each guard where its hazard is, and nothing else orders those operations. The
defaults are the correct behaviour; a frozen `Guards` with one of them replaced is a defective stack.
"""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from repro.base.probe import Component
from repro.serve.device.base import Event, Stream
from repro.serve.layersplit.partition import owner_of


class LayerLoads(Protocol):
    """The load-back that a batch depends on: one event per layer."""

    def layer_done(self, layer: int) -> Event:
        """Return the event behind the last copy of `layer`; valid for the batch."""

    @property
    def all_done(self) -> Event:
        """Return the event behind the last copy of all; valid for the batch."""


class Switch(Protocol):
    """A communicator as its guard sees it."""

    enabled: bool


LayerGuard = Callable[[Stream, LayerLoads | None, int], None]
EventGuard = Callable[[Stream, Event], None]
HostGuard = Callable[[Event], Awaitable[None]]
ChunkGuard = Callable[[Stream, Event, bool], None]
ArrivalGuard = Callable[[frozenset[Component]], bool]
DrainGuard = Callable[[Awaitable[None]], Awaitable[None]]
AskForSafety = Callable[[], Coroutine[Any, Any, bool]]
ReclaimGuard = Callable[[AskForSafety], Coroutine[Any, Any, bool]]
SlotGuard = Callable[[Awaitable[bool]], Awaitable[bool]]
ReplayGuard = Callable[[Stream, LayerLoads | None], None]
StartGuard = Callable[[Callable[[], None]], None]
ComponentsGuard = Callable[[tuple[Component, ...]], tuple[Component, ...]]
RangeGuard = Callable[[int], int]
LayersGuard = Callable[[range, range], tuple[int, ...]]
TakenGuard = Callable[[int, int], int]
OwnerGuard = Callable[[bool], bool]
FreeGuard = Callable[[str], None]
SwitchGuard = Callable[[Switch], None]
RootGuard = Callable[[int, int, int], int]


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


def load_all_layers(model: range, draft: range) -> tuple[int, ...]:
    """Load-back copies every layer, the draft layer behind the model's own. A draft layer that is left out
    drafts from the pages' previous owner until the prefix is computed anew."""
    return (*model, *draft)


def load_what_is_missing(device_hit_pages: int) -> int:
    """Return the first page of a prefix to load: the one behind those that are on the device. Those before it
    are shared: steps in flight read them, and a load-back writes on a stream of its own."""
    return device_hit_pages


def load_all_components(components: tuple[Component, ...]) -> tuple[Component, ...]:
    """Load-back copies all that a page holds. A component that is left out is the pages' previous owner's."""
    return components


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


def keep_until_read(ended: bool) -> bool:
    """Return whether the host pages of a load-back may go to somebody else. Until it has `ended` its copies are still
    to read them: with True for an answer a write-back overwrites them first."""
    return ended


def restored_whole(failed: frozenset[Component]) -> bool:
    """Return whether a page that was prefetched from storage may be used: when no component of it has `failed`. The
    files of latents and index keys are read one by one; without those of one, the host page keeps its previous
    owner's."""
    return not failed


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


def owns_nothing_any_more(aborted: bool) -> bool:
    """A step's result may come for a request that was released while it ran: it has ended, or was `aborted`.
    Whoever takes it for the owner still gives its pages back twice, and two requests get the same page."""
    return False


def keep_what_the_tree_took(hit_pages: int, shared_pages: int) -> int:
    """Return how many leading pages of a retracted request are the tree's: what was hit, and what has been put into
    the tree since, chunk by chunk. If the latter is given back, the tree's node points to free pages, and whoever
    hits it reads what the next owner has stored there."""
    return shared_pages


def refuse_double_free(why: str) -> NoReturn:
    """A free list knows no owners: a page that is given back twice is in it twice. `why` names the page."""
    raise AssertionError(why)


def wait_for_chunk(transfer: Stream, stored: Event, last: bool) -> None:
    """The forward of a prompt's chunk may still run when its transfer is posted. Without this wait the
    network reads rows that are not stored yet. `last`: it is the prompt's last chunk."""
    transfer.wait(stored, "the step that stores this chunk has finished")


async def wait_for_riders(last_use: Event) -> None:
    """A step in flight may still touch pages that a request has given back: it rode along. Without this
    wait a remote write, which no stream of this device orders, meets that step."""
    await last_use.synchronize("the last step that used these pages has finished")


def all_arrived(failed: frozenset[Component]) -> bool:
    """A transfer has succeeded when every component of it has. Otherwise rows are read that never came."""
    return not failed


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


def enable_communicator(communicator: Switch) -> None:
    """A broadcast on a disabled communicator does nothing, and says nothing. Without this call the scratch
    buffer keeps what an earlier layer left there."""
    communicator.enabled = True


def broadcast_by_owner(layer: int, layers: int, ranks: int) -> int:
    """Return the rank that broadcasts a layer. Another one than its owner has some other layer in the buffer
    that it sends, and the owner's own rows are overwritten with it."""
    return owner_of(layer, layers, ranks)


def wait_before_patch(compute: Stream, arrived: Event) -> None:
    """New rows are put where a broadcast brings the old ones of the same pages. Without this wait the
    broadcast overwrites them (on the owner: sends pages that change while they are read)."""
    compute.wait(arrived, "the broadcast into these pages has ended")


def wait_for_broadcast(compute: Stream, arrived: Event) -> None:
    """A layer that another rank owns comes by broadcast. Without this wait the step reads what an earlier
    layer left in the scratch buffer."""
    compute.wait(arrived, "the layer has arrived from its owner")


@dataclass(frozen=True)
class Guards:
    """The guards of one stack."""

    before_index_store: LayerGuard = store_alone
    before_index_read: LayerGuard = wait_for_index_load
    before_latent_read: LayerGuard = wait_for_latent_load
    before_draft_read: LayerGuard = wait_for_draft_load
    loaded_layers: LayersGuard = load_all_layers
    first_loaded: RangeGuard = load_what_is_missing
    loaded_components: ComponentsGuard = load_all_components
    before_graph_replay: ReplayGuard = wait_for_whole_load
    on_load_start: StartGuard = start_at_once
    before_page_reuse: EventGuard = wait_for_last_use
    before_write_back: EventGuard = wait_for_store
    before_host_release: OwnerGuard = keep_until_read
    page_restored: ArrivalGuard = restored_whole
    before_staging_reuse: HostGuard = wait_for_upload
    before_row_reuse: EventGuard = wait_for_row_users
    before_row_read: EventGuard = wait_for_rows
    kept_by_tree: TakenGuard = keep_what_the_tree_took
    still_owner: OwnerGuard = owns_nothing_any_more
    on_double_free: FreeGuard = refuse_double_free
    before_transfer_read: ChunkGuard = wait_for_chunk
    before_pages_offered: HostGuard = wait_for_riders
    transfer_arrived: ArrivalGuard = all_arrived
    before_source_release: DrainGuard = wait_for_writes
    before_safe_to_reclaim: DrainGuard = wait_for_writes
    before_reclaim: ReclaimGuard = ask_until_safe
    before_slot_reuse: SlotGuard = wait_for_reclaim
    before_broadcast: LayerGuard = wait_for_owner_load
    before_scratch_reuse: EventGuard = wait_for_scratch_readers
    before_broadcast_call: SwitchGuard = enable_communicator
    broadcast_root: RootGuard = broadcast_by_owner
    before_patch: EventGuard = wait_before_patch
    before_scratch_read: EventGuard = wait_for_broadcast
