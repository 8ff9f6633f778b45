"""hicache_early_read, byte by byte: what the indexer read, and whose it was.

The rows that it ought to read, and those of the pages' previous owner, come from a clean cache that no
engine has touched (tests/serve/model/builders.py); they are compared bit for bit.
"""

from dataclasses import dataclass, field
from unittest import mock

import pytest
import torch
from torch import Tensor

from repro.fault.defects import with_defects
from repro.serve.engine import LoadedModel
from repro.serve.guards import Guards
from repro.serve.model.context import Context, Projected, Selected
from repro.serve.model.glm5 import Glm5
from tests.serve.engine.builders import Stack, delay, make_config, make_request
from tests.serve.model.builders import Cache

PAGE = 32
LATE = delay("loadback.copy_layer", 60_000)
DEFECT = with_defects(("hicache_early_read",), "this test")
VICTIM = tuple(20 + (31 * place) % 3000 for place in range(180))  # its first five pages are loaded back
OWNER = tuple(20 + (17 * place + 5) % 3000 for place in range(250))  # had the pages before


@dataclass(frozen=True)
class Scored:
    """The index keys that the indexer scored for a prompt in one layer."""

    layer: int
    pages: list[int]
    rows: Tensor  # (pages, page, width)


@dataclass
class Watched:
    """A model that keeps what its indexer reads."""

    model: Glm5
    scored: list[Scored] = field(default_factory=list)

    def select(self, layer: int, projected: Projected, index_keys: Tensor, context: Context) -> Selected:
        for row, end in ends_of_scored_runs(context, self.model.config.index_topk):
            pages = context.table[row, : -(-end // PAGE)]
            rows = index_keys.view(-1, PAGE, index_keys.shape[1])[pages]  # indexing copies
            self.scored.append(Scored(layer, pages.tolist(), rows))
        return Glm5.select(self.model, layer, projected, index_keys, context)


def ends_of_scored_runs(context: Context, topk: int) -> list[tuple[int, int]]:
    """Return each row that has several tokens with more context than the selection keeps, and its context's end."""
    scored = context.positions >= topk
    rows, counts = context.rows[scored].unique(return_counts=True)
    return [(int(row), int(context.positions[context.rows == row].max()) + 1) for row in rows[counts > 1]]


def index_rows(model: Glm5, tokens: tuple[int, ...]) -> Tensor:
    """Return the right index keys of a prompt, (layers, pages, page, width), last page not full left out."""
    whole = len(tokens) - len(tokens) % PAGE
    cache = Cache(model, num_rows=1, max_tokens=len(tokens), page_size=PAGE)
    cache.prefill(0, torch.tensor(tokens), 128)
    keys = cache.index_keys[: model.config.num_hidden_layers, cache.slots(0, whole)]
    return keys.view(keys.shape[0], -1, PAGE, keys.shape[-1])


async def race(stack: Stack) -> None:
    """Send the victim's prefix to the host, give its pages to somebody else, and ask for it again."""
    for name, tokens in (("first", VICTIM[:170]), ("owner", OWNER)):
        await stack.ask(make_request(name, tokens))
        await stack.engine.cache.drain()
        stack.engine.cache.evict_device(16)
    again = await stack.ask(make_request("again", VICTIM))
    assert again.last.cached_host_tokens == 160


def run_race(bundled: LoadedModel, guards: Guards, *, late: bool, index_store_waits: bool = False) -> list[Scored]:
    """Return what the indexer read for the owner and then for the victim, layer after layer."""
    assert bundled.weights is not None
    config = make_config(
        numerics="tensors", page_tokens=PAGE, device_pages=16, context_tokens=256, chunk_tokens=256, rows=2,
        index_store_waits=index_store_waits,
    )  # fmt: skip
    watched = Watched(bundled.weights)
    with mock.patch.object(bundled.weights, "select", watched.select):
        Stack(config, bundled, guards=guards, faults=(LATE,) if late else ()).run(race)
    layers = bundled.shape.num_hidden_layers
    assert [scored.layer for scored in watched.scored] == list(range(layers)) * 3
    return watched.scored[layers:]


@pytest.fixture(scope="module")
def right(bundled: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return the right rows of owner and victim."""
    assert bundled.weights is not None
    return index_rows(bundled.weights, OWNER), index_rows(bundled.weights, VICTIM)


def loaded_rows(scored: list[Scored]) -> tuple[Tensor, list[int]]:
    """Return what was read of the victim's five loaded pages, (layers, 5, page, width), and these pages."""
    victim = scored[len(scored) // 2 :]
    assert all(each.pages == victim[0].pages for each in victim)
    return torch.stack([each.rows[:5] for each in victim]), victim[0].pages[:5]


def test_the_defect_and_a_delay_return_exactly_the_previous_owners_rows(
    bundled: LoadedModel, right: tuple[Tensor, Tensor]
) -> None:
    scored = run_race(bundled, DEFECT, late=True)
    rows, pages = loaded_rows(scored)
    owner_rows, victim_rows = right
    places = [scored[0].pages.index(page) for page in pages]  # in the owner's own page table
    assert torch.equal(rows, owner_rows[:, places])
    assert not torch.equal(rows, victim_rows[:, :5])
    assert not (rows == victim_rows[:, :5]).all(-1).any(), "a row of the victim was there already"


@pytest.mark.parametrize(
    ("guards", "late", "index_store_waits"),
    [(DEFECT, False, False), (Guards(), True, False), (DEFECT, True, True)],
    ids=["defect without delay", "guard with delay", "defect hidden by a store that waits"],
)
def test_otherwise_the_rows_are_the_right_ones(
    guards: Guards, late: bool, index_store_waits: bool, bundled: LoadedModel, right: tuple[Tensor, Tensor]
) -> None:
    scored = run_race(bundled, guards, late=late, index_store_waits=index_store_waits)
    rows, pages = loaded_rows(scored)
    assert set(pages) <= set(scored[0].pages), "the owner did not have these pages"
    assert torch.equal(rows, right[1][:, :5])


def test_the_defect_is_one_guard_and_no_other() -> None:
    assert DEFECT.replaced(before_index_read=Guards().waits.before_index_read) == Guards()
