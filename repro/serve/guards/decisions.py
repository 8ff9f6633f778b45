"""Guards that decide: what is loaded, what may be used, who owns a page, who sends a layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Protocol

from repro.base.probe import Component


class Switch(Protocol):
    """A communicator as its guard sees it."""

    enabled: bool


LayersGuard = Callable[[range, range], tuple[int, ...]]
RangeGuard = Callable[[int], int]
ComponentsGuard = Callable[[tuple[Component, ...]], tuple[Component, ...]]
ArrivalGuard = Callable[[frozenset[Component]], bool]
FreeGuard = Callable[[str], None]
SwitchGuard = Callable[[Switch], None]
HostReleaseGuard = Callable[[], bool]
TakenGuard = Callable[[int, int], int]
OwnerGuard = Callable[[bool], bool]
RootGuard = Callable[[int, int, int, int], int]


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


def hold_host_until_loaded() -> bool:
    """Return whether the host pages of a load-back may go to somebody else as soon as its copies are enqueued. These
    copies are still to read them: with True for an answer a write-back overwrites them first."""
    return False


def restored_whole(failed: frozenset[Component]) -> bool:
    """Return whether a page that was prefetched from storage may be used: when no component of it has `failed`. The
    files of latents and index keys are read one by one; without those of one, the host page keeps its previous
    owner's."""
    return not failed


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


def all_arrived(failed: frozenset[Component]) -> bool:
    """A transfer has succeeded when every component of it has. Otherwise rows are read that never came."""
    return not failed


def enable_communicator(communicator: Switch) -> None:
    """A broadcast on a disabled communicator does nothing, and says nothing. Without this call the scratch
    buffer keeps what an earlier layer left there."""
    communicator.enabled = True


def broadcast_by_owner(owner: int, layer: int, layers: int, ranks: int) -> int:
    """Return the rank that broadcasts a layer. Another one than its owner has some other layer in the buffer
    that it sends, and the owner's own rows are overwritten with it."""
    return owner


@dataclass(frozen=True)
class Decisions:
    """The guards that decide."""

    loaded_layers: LayersGuard = load_all_layers
    first_loaded: RangeGuard = load_what_is_missing
    loaded_components: ComponentsGuard = load_all_components
    release_host_at_enqueue: HostReleaseGuard = hold_host_until_loaded
    page_restored: ArrivalGuard = restored_whole
    kept_by_tree: TakenGuard = keep_what_the_tree_took
    still_owner: OwnerGuard = owns_nothing_any_more
    on_double_free: FreeGuard = refuse_double_free
    transfer_arrived: ArrivalGuard = all_arrived
    before_broadcast_call: SwitchGuard = enable_communicator
    broadcast_root: RootGuard = broadcast_by_owner
