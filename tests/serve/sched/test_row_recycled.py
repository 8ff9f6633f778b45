"""sched_row_recycled: uploads run beside the forward, and a row gets its next request under a step in flight."""

import pytest

from repro.fault.defects import DEFECTS
from repro.schedule.pickers import Pick, RandomPicker, timed
from repro.serve.guards import Guards
from tests.serve.engine.builders import Stack, delay, make_request, never, prompt, stamps_answer
from tests.serve.spec.builders import drafting_config, drafting_model

DEFECT = DEFECTS["sched_row_recycled"].apply(Guards())
REQUESTS = 12
LATE = delay("forward.upload", 40_000, probability=0.3)
OVERTAKEN = "no edge between compute and upload"


async def taking_turns(stack: Stack) -> None:
    """Ask for more answers at once than there are rows; the next in the queue gets the row that comes free."""
    requests = [make_request(f"r{n}", prompt(n % 3, 12 + n % 5), 5 + n % 4) for n in range(REQUESTS)]
    for request, answer in zip(requests, await stack.ask_all(*requests), strict=True):
        if not stack.bad_reads:
            assert answer.tokens == stamps_answer(request.tokens, request.sampling.max_tokens)


def run(
    guards: Guards, drafts: int = 3, *, late: bool = False, pick: Pick = timed, upload_stream: bool = True
) -> Stack:
    config = drafting_config(drafts, device_pages=32, rows=2, upload_stream=upload_stream)
    return Stack(config, drafting_model(), guards=guards, faults=(LATE,) if late else (), pick=pick).run(taking_turns)


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("pick", [timed, RandomPicker(3), RandomPicker(4)], ids=["timed", "random", "another"])
def test_with_the_guards_no_schedule_shows_anything(drafts: int, pick: Pick) -> None:
    stack = run(Guards(), drafts, late=True, pick=pick)
    stack.assert_clean()
    assert stack.injector.counts[LATE.name].fired > 0
    assert any(op.stream == "upload" for op in stack.ops("forward.upload"))


@pytest.mark.parametrize("seed", [3, 4])
def test_a_row_that_is_given_away_too_early_is_found_and_wrong_bytes_are_read(seed: int) -> None:
    stack = run(DEFECT, pick=RandomPicker(seed))
    assert any("forward.upload write" in each and each.endswith(OVERTAKEN) for each in stack.signatures)
    assert stack.bad_reads


@pytest.mark.parametrize("drafts", [0, 3])
def test_ordering_convicts_in_the_natural_schedule_too(drafts: int) -> None:
    assert any(each.endswith(OVERTAKEN) for each in run(DEFECT, drafts).signatures)


def test_a_step_that_does_not_wait_for_its_upload_computes_the_previous_request() -> None:
    stack = run(Guards().replaced(before_row_read=never), late=True)
    assert "ordering: forward.upload write x forward.embed read of rows row, " + OVERTAKEN in stack.signatures
    assert stack.bad_reads


def test_without_an_upload_stream_the_rows_need_no_guard_and_are_not_told() -> None:
    stack = run(DEFECT, upload_stream=False)
    stack.assert_clean()
    assert not any(access.component == "row" for op in stack.ops() for access in op.accesses)
