"""The one table of points: where a fault may be put, in words, and which kinds are possible there.

`repro faults`, the scenario reference and the checks of a plan are made from it.
"""

from typing import NamedTuple

from repro.fault.kinds import (
    KINDS,
    Abort,
    Burst,
    Delay,
    Disconnect,
    Drop,
    Duplicate,
    Evict,
    Fail,
    Kill,
    Kind,
    Order,
    Reorder,
    Slow,
    Stall,
    Tear,
)  # fmt: skip

TIMING = (Delay, Stall, Reorder)
MESSAGE = (Delay, Drop, Duplicate)
CORRUPTING = tuple(kind for kind in KINDS.values() if kind.corrupting)


class Point(NamedTuple):
    """A point: the words that a sentence about its faults begins with (`Kind.what` ends it), and its possible kinds."""

    what: str
    kinds: tuple[type[Kind], ...]


PLANES = {
    "loadback": "from host memory to the device",
    "writeback": "from the device to host memory",
    "storage": "between host memory and files ([target] storage_pages)",
    "forward": "a step's kernels and copies",
    "spec": "passes of the draft layer ([target] speculative_drafts)",
    "transfer": "one-sided writes of a prefill worker ([target] pd)",
    "pd": "messages between the workers ([target] pd)",
    "split": "operations of a context-parallel rank ([target] layersplit)",
    "memory": "pages",
    "client": "whoever asks",
}
POINTS = {
    "loadback.copy_layer": Point("a copy of some pages of one layer and component, host to device,", TIMING),
    "writeback.copy_layer": Point("a copy of some pages of one layer and component, device to host,", TIMING),
    "storage.read": Point("the read of a page's file, latents or index keys, into host memory", TIMING),
    "storage.write": Point("the write of a page's file", TIMING),
    "storage.latent": Point("the read of a page's latents", (Fail,)),
    "storage.index": Point("the read of a page's index keys", (Fail,)),
    "storage.file": Point("a page's file, when it is written,", (Fail, Tear)),
    "forward.upload": Point("the copy of request rows to the device", TIMING),
    "forward.embed": Point("the embedding of a step's tokens", TIMING),
    "forward.store": Point("the store of a layer's new latents and index keys", TIMING),
    "forward.index": Point("the indexer's read of a layer's index keys", TIMING),
    "forward.attend": Point("attention's read of a layer's latents", TIMING),
    "forward.feed_forward": Point("a layer's experts", TIMING),
    "forward.sample": Point("the choice of the next tokens", TIMING),
    "forward.download": Point("the copy of the chosen tokens to the host", TIMING),
    "transfer.write": Point("the write of some pages of a prompt into decode's memory", TIMING),
    "transfer.write_slot": Point("the write of the first token into its metadata slot", TIMING),
    "transfer.read_slot": Point("decode's read of a metadata slot", TIMING),
    "transfer.latent": Point("a posted write of latents", (Fail,)),
    "transfer.index": Point("a posted write of index keys", (Fail,)),
    "pd.destination": Point("decode tells prefill where to write", MESSAGE),
    "pd.done": Point("prefill tells decode that a prompt has arrived", MESSAGE),
    "pd.abort": Point("decode tells prefill that a request was aborted", MESSAGE),
    "pd.safe": Point("prefill tells decode that pages are safe to reclaim", MESSAGE),
    "pd.prefill_worker": Point("a prefill worker's process", (Kill,)),
    "spec.store": Point("the store of the draft layer's rows", TIMING),
    "spec.index": Point("the draft layer's read of its index keys", TIMING),
    "spec.attend": Point("the draft layer's read of its latents", TIMING),
    "spec.propose": Point("the choice of a drafted token", TIMING),
    "split.project": Point("a rank's projection of its own tokens", TIMING),
    "split.store_index": Point("a rank's store of gathered index keys", TIMING),
    "split.store_latent": Point("a rank's store of gathered latents", TIMING),
    "split.broadcast_index": Point("the owner's broadcast of a layer's index keys", TIMING),
    "split.broadcast_latent": Point("the owner's broadcast of a layer's latents", TIMING),
    "split.receive_index": Point("another rank's receipt of a layer's index keys", TIMING),
    "split.receive_latent": Point("another rank's receipt of a layer's latents", TIMING),
    "split.gather_rows": Point("a rank's part in the gather of new rows", TIMING),
    "split.gathered_rows": Point("the arrival of all ranks' new rows", TIMING),
    "split.gather_tokens": Point("a rank's part in the gather of chosen tokens", TIMING),
    "split.gathered_tokens": Point("the arrival of all ranks' chosen tokens", TIMING),
    "split.rank": Point("a rank's process", (Kill,)),
    "memory.evict": Point("the prefix cache, between two rounds of the engine,", (Evict,)),
    "memory.in_use": Point("a page that the last step read", CORRUPTING),
    "memory.cached": Point("a page of the prefix cache that the last step did not read", CORRUPTING),
    "memory.host": Point("a written page of the host tier", CORRUPTING),
    "memory.in_flight": Point("a page that a copy or transfer has just brought", CORRUPTING),
    "memory.draft": Point("the draft layer's rows of a page that the last step read", CORRUPTING),
    "client.abort": Point("an answer under way", (Abort,)),
    "client.disconnect": Point("a connection with an answer under way", (Disconnect,)),
    "client.slow_reader": Point("the reading of an answer", (Slow,)),
    "client.burst": Point("the sending of a request", (Burst,)),
    "client.order": Point("the sending of a request", (Order,)),
}
PLACES = tuple(name for name, point in POINTS.items() if point.kinds == CORRUPTING)  # bytes may be changed here


class Named(NamedTuple):
    """A fault that a plan may ask for."""

    name: str  # point.kind
    plane: str
    legal: bool  # whether a correct server survives it without a wrong byte; else the canary must see it
    what: str  # one sentence


def catalogue() -> list[Named]:
    """Return all faults, in the order of `POINTS`."""
    return [
        Named(f"{name}.{kind}", name.partition(".")[0], not KINDS[kind].corrupting, f"{point.what} {KINDS[kind].what}")
        for name, point in POINTS.items()
        for kind in names_of(point.kinds)
    ]


def names_of(kinds: tuple[type[Kind], ...]) -> tuple[str, ...]:
    """Return the names that these kinds have in scenario files."""
    return tuple(name for name, kind in KINDS.items() if kind in kinds)
