"""Every fault that a plan may ask for, in words: `repro faults` prints it.

A fault is a point and a kind. What a point is and what a kind does is said once each; a few kinds do something of
their own at their point.
"""

from typing import NamedTuple

from repro.fault.plan import CORRUPTING, POINTS

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
WHERE = {
    "loadback.copy_layer": "a copy of some pages of one layer and component, host to device,",
    "writeback.copy_layer": "a copy of some pages of one layer and component, device to host,",
    "storage.read": "the read of a page's file, latents or index keys, into host memory",
    "storage.write": "the write of a page's file",
    "storage.latent": "the read of a page's latents",
    "storage.index": "the read of a page's index keys",
    "storage.file": "a page's file, when it is written,",
    "forward.upload": "the copy of request rows to the device",
    "forward.embed": "the embedding of a step's tokens",
    "forward.store": "the store of a layer's new latents and index keys",
    "forward.index": "the indexer's read of a layer's index keys",
    "forward.attend": "attention's read of a layer's latents",
    "forward.feed_forward": "a layer's experts",
    "forward.sample": "the choice of the next tokens",
    "forward.download": "the copy of the chosen tokens to the host",
    "transfer.write": "the write of some pages of a prompt into decode's memory",
    "transfer.write_slot": "the write of the first token into its metadata slot",
    "transfer.read_slot": "decode's read of a metadata slot",
    "transfer.latent": "a posted write of latents",
    "transfer.index": "a posted write of index keys",
    "pd.destination": "decode tells prefill where to write",
    "pd.done": "prefill tells decode that a prompt has arrived",
    "pd.abort": "decode tells prefill that a request was aborted",
    "pd.safe": "prefill tells decode that pages are safe to reclaim",
    "pd.prefill_worker": "a prefill worker's process",
    "spec.store": "the store of the draft layer's rows",
    "spec.index": "the draft layer's read of its index keys",
    "spec.attend": "the draft layer's read of its latents",
    "spec.propose": "the choice of a drafted token",
    "split.project": "a rank's projection of its own tokens",
    "split.store_index": "a rank's store of gathered index keys",
    "split.store_latent": "a rank's store of gathered latents",
    "split.broadcast_index": "the owner's broadcast of a layer's index keys",
    "split.broadcast_latent": "the owner's broadcast of a layer's latents",
    "split.receive_index": "another rank's receipt of a layer's index keys",
    "split.receive_latent": "another rank's receipt of a layer's latents",
    "split.gather_rows": "a rank's part in the gather of new rows",
    "split.gathered_rows": "the arrival of all ranks' new rows",
    "split.gather_tokens": "a rank's part in the gather of chosen tokens",
    "split.gathered_tokens": "the arrival of all ranks' chosen tokens",
    "split.rank": "a rank's process",
    "memory.evict": "the prefix cache, between two rounds of the engine,",
    "memory.in_use": "a page that the last step read",
    "memory.cached": "a page of the prefix cache that the last step did not read",
    "memory.host": "a written page of the host tier",
    "memory.in_flight": "a page that a copy or transfer has just brought",
    "memory.draft": "the draft layer's rows of a page that the last step read",
    "client.abort": "an answer under way",
    "client.disconnect": "a connection with an answer under way",
    "client.slow_reader": "the reading of an answer",
    "client.burst": "the sending of a request",
    "client.order": "the sending of a request",
}
WHAT = {
    "delay": "happens `us` later than it would",
    "stall": "does not happen before the virtual time `us`",
    "reorder": "lets another stream's next operation go first",
    "drop": "is lost",
    "duplicate": "comes twice",
    "fail": "delivers nothing, and its completion says so",
    "tear": "is cut short, and nobody is told",
    "kill": "is gone from one moment to the next; what it had posted still lands",
    "evict": "gives up `tokens` of what nobody holds",
    "abort": "is cancelled `us` after it was asked for; the session goes on with what there is",
    "disconnect": "is lost `us` after the request was sent; the client comes back and asks again",
    "slow": "pauses `us` after each piece",
    "burst": "waits for the next full `us`, so that many come at once",
    "order": "waits, `us` at most, until another session was answered: A, B, then A again",
    "flip": "has one bit of one row flipped",
    "zero": "is zeroed",
    "nan": "is overwritten with NaN",
    "swap": "has changed places with another page of its layer and component",
    "stale": "holds what it held when it was handed out: the write to it was lost",
    "misdirect": "is stale, and what was written to it is in another page",
    "partial": "is stale from some row on: the write to it was torn",
}


class Named(NamedTuple):
    """A fault of the catalogue."""

    name: str  # point.kind
    plane: str
    legal: bool  # a correct server survives it without a wrong byte; else the canary must see it
    what: str  # one sentence


def catalogue() -> list[Named]:
    """Return all faults, in the order of `plan.POINTS`."""
    return [
        Named(f"{point}.{kind}", point.partition(".")[0], kind not in CORRUPTING, f"{WHERE[point]} {WHAT[kind]}")
        for point, kinds in POINTS.items()
        for kind in kinds
    ]
