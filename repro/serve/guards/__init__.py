"""Every place where ordering keeps the KV cache safe, by name; whoever in `repro.serve` meets such a hazard calls it.

The stack calls each guard where its hazard is, and nothing else orders those operations. The defaults are the
correct behaviour; a `Guards` with one of them replaced is a defective stack.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from repro.serve.guards.decisions import Decisions
from repro.serve.guards.waits import Waits

WAITS = tuple(field.name for field in fields(Waits))
DECISIONS = tuple(field.name for field in fields(Decisions))


@dataclass(frozen=True)
class Guards:
    """The guards of one stack."""

    waits: Waits = Waits()
    decisions: Decisions = Decisions()

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Return a guard by its name."""
        guard: Callable[..., Any] = getattr(self.waits if name in WAITS else self.decisions, name)
        return guard

    def replaced(self, **guards: Callable[..., Any]) -> "Guards":
        """Return these guards with some others in their places, by name. Raises TypeError for an unknown name."""
        waits = {name: guard for name, guard in guards.items() if name in WAITS}
        decisions = {name: guard for name, guard in guards.items() if name not in WAITS}
        return Guards(replace(self.waits, **waits), replace(self.decisions, **decisions))
