"""What decides a training run besides the sources and the machine's arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """So many steps at one context length."""

    context_tokens: int
    steps: int


@dataclass(frozen=True)
class Settings:
    """Lengths, rates and weights of a run; the defaults are the bundled checkpoint's."""

    phases: tuple[Phase, ...]
    seed: int = 0
    batch_tokens: int = 65_536
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    decay_from: float = 0.45  # share of the steps after which the rate falls linearly
    last_rate: float = 0.01  # share of the learning rate
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    other_token_weight: float = 0.3  # weight of tokens that are not the assistant's
    mtp_weight: float = 0.3
    index_weight: float = 0.1
    index_every_steps: int = 2
    balance_rate: float = 1e-3  # step of the routers' bias towards equal load

    @property
    def steps(self) -> int:
        """Return the number of steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def context_at(self, step: int) -> int:
        """Return the context length of a step. Raises IndexError past the last step."""
        for phase in self.phases:
            if step < phase.steps:
                return phase.context_tokens
            step -= phase.steps
        raise IndexError("step is past the last phase")

    def rows_at(self, step: int) -> int:
        """Return how many rows of its context length make up this step's batch."""
        return max(1, round(self.batch_tokens / self.context_at(step)))

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: warm-up, plateau, linear fall."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        fallen = max(0.0, step / self.steps - self.decay_from) / (1 - self.decay_from)
        return self.learning_rate * warm * (1 - fallen * (1 - self.last_rate))
