"""A finding told as prose: what ran after what, for whom, and what should have ordered them."""

from typing import Any

from repro.hunt.play import Found, Played
from repro.schedule.schedule import WINDOWS_US
from repro.schedule.strategies import Overtaking

# What a reader calls the operations of the stack.
NOUNS = {
    "loadback.copy_layer": "load-back",
    "writeback.copy_layer": "write-back",
    "forward.upload": "the upload of request rows",
    "forward.embed": "the embedding",
    "forward.store": "the store of new rows",
    "forward.index": "the indexer",
    "forward.attend": "attention",
    "forward.feed_forward": "the feed-forward",
    "forward.sample": "sampling",
    "forward.download": "the download of tokens",
    "spec.store": "the draft layer's store",
    "spec.index": "the draft layer's indexer",
    "spec.attend": "the draft layer's attention",
    "spec.propose": "the draft's proposal",
    "transfer.write": "the transfer",
    "transfer.write_slot": "the transfer of the first token",
    "transfer.read_slot": "the read of the first token",
    "host": "the host's next step",
}
OVERTAKINGS_TOLD = 5


def explain(found: Found, case: Played) -> str:
    """Return the finding in a few sentences."""
    told = [_what_happened(found)]
    if "missing_edge" in found.evidence:
        told.append(f"Missing edge: {found.evidence['missing_edge']}.")
    schedule = case.options.schedule
    if not case.deviations:
        told.append("It takes no special schedule: the natural order of a real machine shows it.")
    elif len(case.overtakings) <= OVERTAKINGS_TOLD and schedule.strategy == "timed":
        told += [f"At step {each.step}, {_overtaking(each)}." for each in case.overtakings]
    else:
        window_ms = WINDOWS_US[schedule.window] / 1e3
        told.append(
            f"Its schedule leaves the natural order at {len(case.deviations)} steps, by {window_ms:g} ms at most."
        )
    return "\n".join(told)


def _what_happened(found: Found) -> str:
    first, second = found.evidence.get("first"), found.evidence.get("second")
    if not (isinstance(first, dict) and isinstance(second, dict) and "start_us" in first and "start_us" in second):
        return f"{found.claim[:1].upper()}{found.claim[1:]}."
    earlier, later = sorted((first, second), key=lambda op: (op["start_us"], op["end_us"]))
    relation = "runs after" if later["start_us"] >= earlier["end_us"] else "runs beside"
    requests: Any = found.evidence.get("requests")
    whom = f" for request {requests[0]}" if requests else ""
    text = (
        f"{_operation(later)}{whom} {relation} {_operation(earlier)} and {_verb(later)} what it {_verb(earlier)}: "
        f"{found.evidence['component']} rows of page {found.evidence['page']}; nothing orders them."
    )
    return f"{text[:1].upper()}{text[1:]}"


def _operation(op: dict[str, Any]) -> str:
    layer = f" of layer {op['layer']}" if op["layer"] >= 0 else ""
    return f"{_noun(op['name'])}{layer}"


def _verb(op: dict[str, Any]) -> str:
    return "writes" if op["write"] else "reads"


def _overtaking(each: Overtaking) -> str:
    return f"the {each.kind} of {_noun(each.name)} comes before the {each.overtaken_kind} of {_noun(each.overtaken)}"


def _noun(name: str) -> str:
    return NOUNS.get(name, name)
