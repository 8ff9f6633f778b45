"""The training run: one step, the feed of batches, states to resume from."""

import math
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repro.train.data import Batch, RowMaker
from repro.train.model import Glm5, MoE
from repro.train.settings import Settings

BATCHES_AHEAD = 6  # per worker
COMPILED_SHAPES_MAX = 64
MOMENTS_WARMUP_STEPS = 100

TokenLosses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Losses:
    """Figures of one step, still on the device."""

    total: Tensor
    next_token: Tensor
    answer: Tensor  # over the assistant's tokens alone
    answer_accuracy: Tensor
    mtp: Tensor
    index: Tensor | None
    loads: dict[int, Tensor]


class Trainer:
    """Model, optimiser and step count; `step` does one step."""

    def __init__(self, model: Glm5, settings: Settings, device: torch.device) -> None:
        self.model = model.to(device)
        self.settings = settings
        self.device = device
        self.steps_done = 0
        self._moments_since: int | None = None  # the step at which a state without the optimiser's moments was loaded
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=device.type == "cuda",
        )
        self._token_losses: TokenLosses = token_losses

    def compile(self) -> None:
        """Compile the layers and the loss, anew for each context length: slow to start, then faster."""
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES_MAX
        for layer in self.model.layers:
            layer.compile(dynamic=False)
        self._token_losses = torch.compile(token_losses, dynamic=False)

    def step(self, batch: Batch) -> Losses:
        """Learn from one batch; it must be the batch of step number `steps_done`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_at(self.steps_done) * self._moments_share()
        teach_index = self.steps_done % self.settings.index_every_steps == 0
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses = batch_losses(self.model, batch, self.settings, self.device, teach_index, self._token_losses)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        balance(self.model, losses.loads, self.settings.balance_rate)
        self.steps_done += 1
        return losses

    def save(self, path: Path) -> None:
        """Write all that a resumed run needs; the file appears whole or not at all."""
        state = {
            "steps_done": self.steps_done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on where `save` was called."""
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.steps_done = state["steps_done"]
        if state["optimizer"] is None:
            self._moments_since = self.steps_done
        else:
            self.optimizer.load_state_dict(state["optimizer"])

    def _moments_share(self) -> float:
        """Return the factor on the rate: a state without the optimiser's moments warms up again."""
        if self._moments_since is None:
            return 1.0
        return min(1.0, (self.steps_done - self._moments_since + 1) / MOMENTS_WARMUP_STEPS)


def batch_losses(
    model: Glm5,
    batch: Batch,
    settings: Settings,
    device: torch.device,
    teach_index: bool,
    token_losses: TokenLosses,
) -> Losses:
    """Return the losses of a batch."""
    tokens = _to_device(batch.tokens.astype("int64"), device)
    answers = _to_device(batch.answers, device)[:, 1:]
    queries = _to_device(batch.index_queries, device) if teach_index else None
    out = model(tokens[:, :-1], queries)
    weights = torch.where(answers, 1.0, settings.other_token_weight)
    each, correct = token_losses(model.lm_head(out.hidden), tokens[:, 1:])
    mtp_each, _ = token_losses(model.lm_head(out.mtp_hidden), tokens[:, 2:])
    next_token = (each * weights).sum() / weights.sum()
    mtp = (mtp_each * weights[:, 1:]).sum() / weights[:, 1:].sum()
    total = next_token + settings.mtp_weight * mtp
    if out.index_loss is not None:
        total = total + settings.index_weight * out.index_loss
    share = answers.float() / answers.sum().clamp(min=1)
    return Losses(
        total=total,
        next_token=next_token.detach(),
        answer=(each.detach() * share).sum(),
        answer_accuracy=(correct.float() * share).sum(),
        mtp=mtp.detach(),
        index=None if out.index_loss is None else out.index_loss.detach(),
        loads=out.loads,
    )


def token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (cross entropy of each token, whether the likeliest token is the right one)."""
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return each.view(targets.shape), logits.detach().argmax(-1) == targets


@torch.no_grad()
def balance(model: Glm5, loads: dict[int, Tensor], rate: float) -> None:
    """Move each router's bias a step towards equal load (DeepSeek-V3's rule, no loss term)."""
    for number, load in loads.items():
        mlp = model.layer(number).mlp
        assert isinstance(mlp, MoE)
        mlp.gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)


class Feed:
    """Batches in step order from worker processes, each making every n-th one.

    Start it before CUDA is touched: the workers are forked, so that they share the sources.
    """

    def __init__(self, maker: RowMaker, settings: Settings, first_step: int, workers: int) -> None:
        context = multiprocessing.get_context("fork")
        self._queues: list[Queue[Batch]] = [context.Queue(BATCHES_AHEAD) for _ in range(workers)]
        self._first_step = first_step
        self._settings = settings
        self._workers = [
            context.Process(
                target=_make_batches, args=(maker, settings, into, first_step + number, workers), daemon=True
            )
            for number, into in enumerate(self._queues)
        ]
        for worker in self._workers:
            worker.start()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the first step on."""
        # A batch is larger than a pipe: taking one costs several turns of its worker's interpreter lock.
        # A thread pays for that while the step before is computed.
        ready: queue.Queue[Batch] = queue.Queue(BATCHES_AHEAD)
        threading.Thread(target=self._fetch, args=(ready,), daemon=True).start()
        for _ in range(self._first_step, self._settings.steps):
            yield ready.get()

    def _fetch(self, ready: "queue.Queue[Batch]") -> None:
        for step in range(self._first_step, self._settings.steps):
            ready.put(self._queues[(step - self._first_step) % len(self._queues)].get())

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()


def _make_batches(maker: RowMaker, settings: Settings, into: "Queue[Batch]", first: int, stride: int) -> None:
    for step in range(first, settings.steps, stride):
        into.put(maker.batch(settings.seed, step, settings.rows_at(step), settings.context_at(step)))


def progress_line(step: int, context: int, tokens_per_s: float, losses: Losses) -> str:
    """Return one line of a run's log."""
    figures = {
        "loss": losses.next_token,
        "answer": losses.answer,
        "answer_acc": losses.answer_accuracy,
        "mtp": losses.mtp,
        "index": losses.index,
    }
    shown = " ".join(f"{name}={float(value):.4f}" for name, value in figures.items() if value is not None)
    return f"step={step} context={context} tokens_per_s={tokens_per_s:,.0f} {shown}"


def is_finite(losses: Losses) -> bool:
    """Return whether training can go on."""
    return math.isfinite(float(losses.total.detach()))


def _to_device(array: Any, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
