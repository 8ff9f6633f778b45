"""How often the model answers held-out sessions exactly, as it is served: sparse top-k, greedy.

An answer is exact if the likeliest token is the right one at each of its tokens, the end token
included; one forward over a session judges all its turns.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from repro.serve.server.chat import ChatEncoder
from repro.trace import synth
from repro.trace.format import Message, Session
from repro.train.data import answer_mask, encode_session
from repro.train.model import Glm5

EVALUATION_SEED = 20_261_124
LENGTH_BUCKETS = (0, 2048, 4096, 6144, 8192, 12288)


@dataclass(frozen=True)
class JudgedTurn:
    """One answer and how it went."""

    kind: str  # the session's kind
    answer: str  # quote | line | call
    prompt_tokens: int
    answer_tokens: int
    exact: bool
    first_wrong: int | None  # offset in the answer
    mtp_right: int  # tokens of the answer after the first that the MTP layer predicted
    session: str = ""


def sessions(per_kind: int, prompt_tokens_target: int, seed: int = EVALUATION_SEED) -> Iterable[Session]:
    """Yield held-out sessions of every kind."""
    for index in range(per_kind):
        for kind in synth.TRAINED_KINDS:
            yield synth.synthesise(kind, seed, index, prompt_tokens_target=prompt_tokens_target)


@torch.no_grad()
def judge(model: Glm5, encoder: ChatEncoder, session: Session, device: torch.device) -> list[JudgedTurn]:
    """Return the session's turns, judged."""
    tokens = np.array(encode_session(encoder, session), dtype=np.uint16)
    mask = answer_mask(tokens, encoder)
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)[None]
    out = model(ids[:, :-1], sparse=True)
    right = (model.lm_head(out.hidden).argmax(-1) == ids[:, 1:])[0].cpu().numpy()
    mtp_right = (model.lm_head(out.mtp_hidden).argmax(-1) == ids[:, 2:])[0].cpu().numpy()
    starts = np.flatnonzero(mask & ~np.concatenate([[False], mask[:-1]]))
    ends = np.flatnonzero(mask & ~np.concatenate([mask[1:], [False]])) + 1
    replies = [turn.reply for turn in session.turns if turn.reply is not None]
    judged = []
    for start, end, reply in zip(starts.tolist(), ends.tolist(), replies, strict=True):
        wrong = np.flatnonzero(~right[start - 1 : end - 1])
        judged.append(
            JudgedTurn(
                kind=session.id.rsplit("-", 2)[0],
                answer=_answer_kind(reply),
                prompt_tokens=start,
                answer_tokens=end - start,
                exact=not len(wrong),
                first_wrong=int(wrong[0]) if len(wrong) else None,
                mtp_right=int(mtp_right[start - 1 : end - 2].sum()),
                session=session.id,
            )
        )
    return judged


def table(turns: Sequence[JudgedTurn]) -> str:
    """Return a Markdown table: exact answers by session kind, answer kind and prompt length."""
    rows = ["| turns | number | exact | first-draft acceptance (MTP) |", "|---|---|---|---|"]

    def add(name: str, belongs: Callable[[JudgedTurn], bool]) -> None:
        chosen = [turn for turn in turns if belongs(turn)]
        if chosen:
            exact = sum(turn.exact for turn in chosen) / len(chosen)
            drafted = sum(turn.answer_tokens - 1 for turn in chosen)
            accepted = sum(turn.mtp_right for turn in chosen) / max(1, drafted)
            rows.append(f"| {name} | {len(chosen)} | {exact:.1%} | {accepted:.1%} |")

    add("all", lambda turn: True)
    for kind in synth.TRAINED_KINDS:
        add(kind, lambda turn, kind=kind: turn.kind == kind)  # type: ignore[misc]
    for answer in ("quote", "line", "call"):
        add(f"answer: {answer}", lambda turn, answer=answer: turn.answer == answer)  # type: ignore[misc]
    for low, high in zip(LENGTH_BUCKETS, LENGTH_BUCKETS[1:], strict=False):
        name = f"prompt {low:,} to {high:,} tokens"
        add(name, lambda turn, low=low, high=high: low <= turn.prompt_tokens < high)  # type: ignore[misc]
    return "\n".join(rows)


def _answer_kind(reply: Message) -> str:
    if reply.tool_calls:
        return "call"
    return "quote" if "\n" in reply.content else "line"
