"""A step's tokens, split over ranks: each has consecutive ones, as many as the others to within one."""

from dataclasses import dataclass, replace

from repro.serve.kv.pool import Pages
from repro.serve.sched.batch import Batch, Member


def part_of(batch: Batch, rank: int, ranks: int) -> Batch:
    """Return a rank's share of a batch; it may have no members. A member samples where its last token is."""
    first, stop = (batch.num_tokens * bound // ranks for bound in (rank, rank + 1))
    members = []
    start = 0
    for member in batch.members:
        end = start + member.count
        low, high = max(first, start), min(stop, end)
        if low < high:
            members.append(_cut(member, low - start, high - start))
        start = end
    return replace(batch, members=tuple(members))


def _cut(member: Member, low: int, high: int) -> Member:
    samples = member.samples and high == member.count
    return replace(member, first=member.first + low, count=high - low, samples=samples)


@dataclass(frozen=True)
class TouchedPages:
    """Pages of a batch, as the scheduler knows its block tables when it plans it."""

    stored: Pages  # the step's new rows go here
    context: Pages  # all that it reads
    older: Pages  # those with rows of earlier steps: what other ranks need of a layer that they don't keep


def touched_pages(batch: Batch, page_tokens: int) -> TouchedPages:
    """Return the pages that a step will touch."""
    return TouchedPages(
        batch.stored_pages(page_tokens), batch.context_pages(page_tokens), batch.older_pages(page_tokens)
    )
