"""A finding told as prose: what ran after what, for whom, and what should have ordered them."""

from typing import Any

from detectors.base import Finding
from repro.schedule.schedule import WINDOWS_US
from repro.schedule.strategies import Overtaking, number_of
from repro.search.play import Played

# What a reader calls the operations of the stack.
NOUNS = {
    "loadback.copy_layer": "load-back",
    "writeback.copy_layer": "write-back",
    "storage.read": "the prefetch from storage",
    "storage.write": "the backup to storage",
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
}
HOST = "the host's next timer"
OVERTAKINGS_TOLD = 5
CHANGES_TOLD = 4


def explain(found: Finding, case: Played) -> str:
    """Return the finding in a few sentences."""
    told = [] if _is_race(found) else [f"{found.claim}."]
    race = found if _is_race(found) else _race_behind(found, case)
    if race is not None:
        told += [_what_raced(race), f"Missing edge: {race.evidence['missing_edge']}."]
    history: Any = found.evidence.get("history")
    if race is None and history:
        told.append(f"The page's last changes: {'; '.join(history[-CHANGES_TOLD:])}.")
    schedule = case.options.schedule
    if not case.deviations:
        told.append("It takes no special schedule: the natural order of a real machine shows it.")
    elif len(case.overtakings) <= OVERTAKINGS_TOLD and schedule.strategy == "timed":
        told += [f"At step {each.step}, {_overtaking(each)}." for each in case.overtakings]
    else:
        held = {each.overtaken for each in case.overtakings if number_of(each.overtaken) == schedule.seed}
        what = f"holds {_noun(min(held))} back" if schedule.strategy == "hold" and held else "leaves the natural order"
        window_ms = WINDOWS_US[schedule.window] / 1e3
        told.append(f"Its schedule {what} at {len(case.deviations)} steps, by {window_ms:g} ms at most.")
    return "\n".join(told)


def _is_race(found: Finding) -> bool:
    """Return whether it tells both operations with their times; the first may be long forgotten."""
    ends = (found.evidence.get("first"), found.evidence.get("second"))
    return all(isinstance(op, dict) and "start_us" in op for op in ends)


def _race_behind(found: Finding, case: Played) -> Finding | None:
    """Return the race, among the run's findings, that a wrong read of this operation comes from."""
    for each in case.found:
        evidence: Any = each.evidence
        names = [evidence[end]["name"] for end in ("first", "second")] if _is_race(each) else []
        if found.evidence.get("op") in names and evidence["component"] == found.evidence.get("component"):
            return each
    return None


def _what_raced(found: Finding) -> str:
    first: Any = found.evidence["first"]
    second: Any = found.evidence["second"]
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
    return f"{_act(each.kind, each.name)} comes before {_act(each.overtaken_kind, each.overtaken)}"


def _act(kind: str, name: str) -> str:
    return HOST if kind == "timer" else f"the {kind} of {_noun(name)}"


def _noun(name: str) -> str:
    return NOUNS.get(name, name)
