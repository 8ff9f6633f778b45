"""Rows of the draft layer and of refused drafts, in stamps: what is cached, backed up and read is always right."""

import asyncio

import numpy as np
import pytest

from repro.fault.defects import DEFECTS
from repro.fault.kinds import Evict, Reorder
from repro.fault.plan import Fault, When
from repro.schedule.pickers import Pick, RandomPicker, timed
from repro.serve.guards import Guards
from repro.serve.kv.pool import COMPONENTS
from repro.serve.kv.radix.node import Node
from repro.serve.kv.stamps import prefix_words, salt
from tests.serve.engine.builders import (
    PAGE,
    VOCABULARY,
    Stack,
    delay,
    make_request,
    never,
    prompt,
    same_events,
    stamps_answer,
)
from tests.serve.spec.builders import DRAFT_LAYER, counts_of, drafting_config, drafting_model
from tests.tapes import Recording, TapePicker

SCHEDULES: dict[str, Pick] = {"timed": timed, "random": RandomPicker(3), "another": RandomPicker(4)}
FAULTS = (
    delay("loadback.copy_layer", 20_000, probability=0.3),
    delay("spec.store", 5_000, probability=0.2),
    Fault("forward.attend", Reorder(), When(probability=0.1)),
    Fault("memory.evict", Evict(6 * PAGE), When(probability=0.5)),
)


def cached_nodes(stack: Stack) -> list[tuple[list[int], Node]]:
    """Return each node of the prefix tree with all keys of the path to it."""
    found: list[tuple[list[int], Node]] = []
    open_nodes: list[tuple[list[int], Node]] = [([], stack.engine.cache.tree.root)]
    while open_nodes:
        before, node = open_nodes.pop()
        for child in node.children.values():
            path = before + child.key.tolist()
            found.append((path, child))
            open_nodes.append((path, child))
    return found


def assert_cached_rows_are_right(stack: Stack) -> int:
    """Check the stamps of every cached row on both tiers against the tokens it is cached under; count the rows."""
    rows = 0
    for path, node in cached_nodes(stack):
        tokens = np.array([key // VOCABULARY for key in path] + [path[-1] % VOCABULARY], np.int64)
        words = prefix_words(tokens)
        for tier, pages in (("device", node.device_pages), ("host", node.host_pages)):
            if pages is None:
                continue
            pool = stack.engine.cache._pools[tier]  # type: ignore[index]
            for layer in range(pool.layers):
                own = words[1:] if layer == DRAFT_LAYER else words[:-1]
                expected = own[-len(pages) * PAGE :].reshape(len(pages), PAGE)
                for component in COMPONENTS:
                    assert (pool.stamps[component][layer, pages] == expected ^ salt(component, layer)).all()
            rows += pool.layers * len(pages) * PAGE
    return rows


async def busy(stack: Stack) -> None:
    """Ask, come back, abort, stop early: five clients that share prefixes; then come back to the host tier."""

    async def client(number: int) -> None:
        await asyncio.sleep(0.01 * number)
        for turn in range(3):
            tokens = prompt(number % 2, 9 + 5 * turn + number)
            right = stamps_answer(tokens, 9)
            stop = (chr(32 + right[5] % 95),) if number == 2 else ()
            asked = asyncio.create_task(stack.ask(make_request(f"c{number}-{turn}", tokens, 9, stop=stop)))
            if number == 3:
                await asyncio.sleep(0.05)
                stack.engine.abort(f"c{number}-{turn}")
            answer = await asked
            assert answer.tokens == right[: len(answer.tokens)]
            assert answer.last.finish == "abort" or len(answer.tokens) == 9 or stop

    await asyncio.gather(*(client(number) for number in range(5)))
    await stack.engine.cache.drain()
    stack.engine.cache.evict_device(24)
    tokens = (*prompt(0, 23), *stamps_answer(prompt(0, 23), 9), 3)
    again = await stack.ask(make_request("again", tokens, 9))
    assert again.tokens == stamps_answer(tokens, 9)
    assert again.last.cached_host_tokens == 28  # the answer's pages too, up to the page of its last token


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("drafts", [1, 3, 8])
def test_refused_drafts_are_never_read_cached_or_backed_up(drafts: int, schedule: str) -> None:
    config = drafting_config(drafts, device_pages=24, host_pages=128, context_tokens=48)
    stack = Stack(config, drafting_model(), faults=FAULTS, pick=SCHEDULES[schedule], seed=3).run(busy)
    stack.assert_clean()
    assert assert_cached_rows_are_right(stack) > 0
    stats = stack.engine.stats()
    assert 0 < stats.accepted_drafts_total < stats.drafts_total, "some drafts must have been refused"
    assert stats.load_back_tokens_total > 0 and stats.evicted_tokens_total > 0


def test_a_recorded_random_run_replays_event_for_event() -> None:
    def run(pick: Pick) -> Stack:
        config = drafting_config(device_pages=24, host_pages=128, context_tokens=48)
        return Stack(config, drafting_model(), faults=FAULTS, pick=pick, seed=3).run(busy)

    recording = Recording(RandomPicker(1))
    first = run(recording)
    assert same_events(first.events, run(TapePicker(recording.tape)).events)


def test_a_page_is_shared_only_where_the_token_behind_it_is_the_same() -> None:
    tokens = prompt(1, 2 * PAGE + 3)

    async def main(stack: Stack) -> None:
        await stack.ask(make_request("first", tokens, 1))
        same = await stack.ask(make_request("same", (*tokens[: 2 * PAGE + 1], 90, 91), 1))
        other = await stack.ask(make_request("other", (*tokens[: 2 * PAGE], 90, 91), 1))
        assert (same.last.cached_device_tokens, other.last.cached_device_tokens) == (2 * PAGE, PAGE)

    Stack(drafting_config(), drafting_model()).run(main).assert_clean()


def test_an_answer_that_fills_the_context_stays_within_it() -> None:
    async def main(stack: Stack) -> None:
        tokens = prompt(1, 9)
        answers = await stack.ask_all(*(make_request(f"r{n}", tokens, 32 - 9 - n) for n in range(4)))
        for number, answer in enumerate(answers):
            assert answer.tokens == stamps_answer(tokens, 32 - 9 - number)

    Stack(drafting_config(8, device_pages=32), drafting_model()).run(main).assert_clean()


def test_a_batch_has_every_request_in_every_step() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask_all(*(make_request(f"r{n}", prompt(n, 3), 12) for n in range(2)))

    stack = Stack(drafting_config(1), drafting_model()).run(main)
    assert [len(step) for step in stack.steps[1:6]] == [2] * 5


# -- the load-back of the draft layer ----------------------------------------------------------------------


async def returning(stack: Stack) -> None:
    """Load a long prefix back for a short suffix, into pages where another prompt was."""
    await stack.ask(make_request("first", prompt(1, 21), 1))
    await stack.engine.cache.drain()
    stack.engine.cache.evict_device(16)
    await stack.ask(make_request("filler", prompt(2, 30), 1))
    stack.engine.cache.evict_device(16)
    answer = await stack.ask(make_request("again", prompt(1, 22), 6))
    assert answer.last.cached_host_tokens == 20
    assert answer.tokens == stamps_answer(prompt(1, 22), 6)


def test_the_draft_layer_is_copied_by_operations_of_its_own_and_awaited() -> None:
    stack = Stack(drafting_config(), drafting_model(), faults=(delay("loadback.copy_layer", 60_000),)).run(returning)
    stack.assert_clean()
    copies = [op for op in stack.ops("loadback.copy_layer") if op.layer == DRAFT_LAYER]
    assert {access.component for op in copies for access in op.accesses} == set(COMPONENTS)
    waits = [edge.why for op in stack.ops("spec.index") for edge in op.after]
    assert "rows of the draft layer are loaded back" in waits


@pytest.mark.parametrize(
    ("guards", "race"),
    [
        (Guards().replaced(before_draft_read=never), True),
        (DEFECTS["hicache_draft_not_restored"].apply(Guards()), False),
    ],
    ids=["not awaited", "not copied"],
)
def test_a_draft_layer_that_is_not_restored_is_read_wrong_and_no_other_layer(guards: Guards, race: bool) -> None:
    faults = (delay("loadback.copy_layer", 60_000),)
    stack = Stack(drafting_config(), drafting_model(), guards=guards, faults=faults).run(returning)
    assert {bad.layer for bad in stack.bad_reads} == {DRAFT_LAYER}
    assert {bad.request for bad in stack.bad_reads} == {"again"}
    found = "ordering: spec.index read x loadback.copy_layer write of device index, no edge between compute and load"
    assert (found in stack.signatures) == race


def test_each_answers_counts_add_up() -> None:
    async def main(stack: Stack) -> None:
        for answer in await stack.ask_all(*(make_request(f"r{n}", prompt(n, 5), 11) for n in range(3))):
            counts = counts_of(answer)
            assert counts.completion_tokens == answer.last.completion_tokens == 11
            assert counts.completion_tokens == 1 + counts.verify_steps + counts.accepted_drafts
            assert counts.verify_steps == len(answer.updates) - 1
            told = [update.speculation for update in answer.updates]
            assert [each.completion_tokens for each in told if each] == list(
                np.cumsum([len(update.tokens) for update in answer.updates])
            )

    stack = Stack(drafting_config(), drafting_model()).run(main)
    stats = stack.engine.stats()
    assert stats.verify_steps_total + stats.accepted_drafts_total == 3 * 10
