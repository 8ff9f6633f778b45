"""A finding as prose: which operation ran after which, for which request, and what should have ordered them."""

from collections.abc import Sequence

from detectors.base import Finding
from detectors.evidence import Evidence, Operation, PageChange, PagePair, PageRead, PageUse
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
OVERTAKINGS_MAX = 5  # named one by one
CHANGES_MAX = 4  # the last changes of a page that are named


def explain(finding: Finding, case: Played) -> str:
    """Return the finding in a few sentences."""
    evidence, race = finding.evidence, _race_of(finding)
    lines = [] if race else [f"{finding.claim}."]
    race = race or _race_behind(evidence, case.found)
    if race is not None:
        lines += [_what_raced(race), f"Missing edge: {race.missing_edge}."]
    elif isinstance(evidence, PagePair | PageUse | PageChange) and evidence.history:
        lines.append(f"The page's last changes: {'; '.join(evidence.history[-CHANGES_MAX:])}.")
    return "\n".join([*lines, *_schedule(case)])


def _schedule(case: Played) -> list[str]:
    """Return what the schedule does that the natural order does not."""
    schedule = case.options.schedule
    if not case.deviations:
        return ["It takes no special schedule: the natural order of a real machine shows it."]
    if len(case.overtakings) <= OVERTAKINGS_MAX and schedule.strategy == "timed":
        return [f"At step {each.step}, {_overtaking(each)}." for each in case.overtakings]
    held = {each.overtaken for each in case.overtakings if number_of(each.overtaken) == schedule.seed}
    what = f"holds {_noun(min(held))} back" if schedule.strategy == "hold" and held else "leaves the natural order"
    window_ms = WINDOWS_US[schedule.window] / 1e3
    return [f"Its schedule {what} at {len(case.deviations)} steps, by {window_ms:g} ms at most."]


def _race_of(finding: Finding) -> PagePair | None:
    """Return the race of a finding, None where the record has dropped one of its operations."""
    pair = finding.evidence
    return pair if isinstance(pair, PagePair) and pair.first.span_us and pair.second.span_us else None


def _race_behind(evidence: Evidence, found: Sequence[Finding]) -> PagePair | None:
    """Return the race, among the run's findings, that a wrong read comes from."""
    if not isinstance(evidence, PageRead):
        return None
    races = (race for each in found if (race := _race_of(each)) is not None)
    mine = (race for race in races if race.component == evidence.component)
    return next((race for race in mine if evidence.op in (race.first.name, race.second.name)), None)


def _what_raced(race: PagePair) -> str:
    earlier, later = sorted((race.first, race.second), key=lambda operation: operation.span_us or (0.0, 0.0))
    assert earlier.span_us is not None and later.span_us is not None
    relation = "runs after" if later.span_us[0] >= earlier.span_us[1] else "runs beside"
    whom = f" for request {race.requests[0]}" if race.requests else ""
    text = (
        f"{_operation(later)}{whom} {relation} {_operation(earlier)} and {later.verb} what it {earlier.verb}: "
        f"{race.component} rows of page {race.page}; nothing orders them."
    )
    return f"{text[:1].upper()}{text[1:]}"


def _operation(operation: Operation) -> str:
    layer = operation.layer
    return _noun(operation.name) + (f" of layer {layer}" if layer is not None and layer >= 0 else "")


def _overtaking(each: Overtaking) -> str:
    return f"{_act(each.kind, each.name)} comes before {_act(each.overtaken_kind, each.overtaken)}"


def _act(kind: str, name: str) -> str:
    return HOST if kind == "timer" else f"the {kind} of {_noun(name)}"


def _noun(name: str) -> str:
    return NOUNS.get(name, name)
