"""What a client may do to a server on purpose: small typed actions, asked for at named points.

These are legal: a correct server answers everybody else rightly whatever a client does.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from repro.base.probe import Decision, Probes

ClientPoint = Literal["client.abort", "client.disconnect", "client.slow_reader", "client.burst", "client.order"]

RECONNECT_AFTER_S = 0.05
OTHERS_WAIT_MAX_S = 5.0


class Abort(msgspec.Struct, frozen=True):
    """The user cancels: after so many tokens, or so long after sending, whichever comes first.

    The session goes on with what there is, as after Escape in a coding agent.
    """

    after_tokens: int | None = None
    after_s: float | None = None


class Disconnect(msgspec.Struct, frozen=True):
    """The connection is lost; the client comes back after `retry_after_s` and asks the same again."""

    after_tokens: int | None = None
    after_s: float | None = None
    retry_after_s: float = RECONNECT_AFTER_S


class SlowReader(msgspec.Struct, frozen=True):
    """The client reads nothing for `pause_s` after every `every_pieces` pieces of the answer."""

    pause_s: float
    every_pieces: int = 1


class HoldForBurst(msgspec.Struct, frozen=True):
    """The request waits for the next full `period_s`, so that those held arrive at one instant."""

    period_s: float


class LetOthersPass(msgspec.Struct, frozen=True):
    """The request waits until `answers` of other sessions are complete: A, then B, then A again.

    B's prefix pushes A's out of the device, so that A's next turn has to be loaded back.
    """

    answers: int = 1
    wait_max_s: float = OTHERS_WAIT_MAX_S


ClientAction = Abort | Disconnect | SlowReader | HoldForBurst | LetOthersPass
ClientFaults = Callable[[ClientPoint, str], ClientAction | None]  # (point, session id)


def no_faults(point: ClientPoint, actor: str) -> ClientAction | None:
    """A client that behaves."""
    return None


def faults_of(probes: Probes) -> ClientFaults:
    """Return the faults that the harness arms at the client's points.

    A decision's `delay_us` says how long: until the abort or disconnect, the slow reader's pause, the
    burst's period, how long to wait for others at most.
    """

    def ask(point: ClientPoint, actor: str) -> ClientAction | None:
        decision = probes.hit(point, actor)
        return None if decision is None else action_of(point, decision)

    return ask


def action_of(point: ClientPoint, decision: Decision) -> ClientAction:
    """Return what a decision means at a client's point."""
    delay_s = decision.delay_us / 1e6
    match point:
        case "client.abort":
            return Abort(after_s=delay_s)
        case "client.disconnect":
            return Disconnect(after_s=delay_s)
        case "client.slow_reader":
            return SlowReader(pause_s=delay_s)
        case "client.burst":
            return HoldForBurst(period_s=delay_s)
        case "client.order":
            return LetOthersPass(wait_max_s=delay_s or OTHERS_WAIT_MAX_S)
