"""What a fault does, one struct a kind: its fields, what they may be, and what it asks of the point it fires at.

A kind is legal when a correct server must survive it without a wrong byte: it perturbs time, order or pressure, never
data. A corrupting kind changes bytes behind the server's back: no server survives it, and the detectors must see it.
A new kind is one struct here, a member of `AnyKind`, and a row of `points.POINTS` that takes it.
"""

from typing import ClassVar, cast, get_args

import msgspec
from msgspec.structs import fields, replace

from repro.base.probe import Decision

DELAY_US_MAX = 60e6
STALL_UNTIL_US_MAX = 3600e6


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind"):
    """Base of all kinds. A scenario file writes a kind's time as `us`, whatever it is the time of.

    A point asks with `Probes.hit`; what the kind wants done reaches it as a `Decision`: the kind's name, its time as
    `delay_us`, and what `added_to` sets beside them.
    """

    what: ClassVar[str]  # the end of a sentence that begins with `Point.what`
    timing: ClassVar[bool] = False  # changes when operations run: reported when it takes effect, not when it is decided
    corrupting: ClassVar[bool] = False
    needs_time: ClassVar[bool] = False
    time_us_max: ClassVar[float] = DELAY_US_MAX

    @property
    def name(self) -> str:
        """Return the kind's name in scenario files and reports."""
        return cast(str, self.__struct_config__.tag)

    @property
    def time_us(self) -> float:
        """Return the kind's time; 0.0 where it has none."""
        times = [field.name for field in fields(self) if field.encode_name == "us"]
        return cast(float, getattr(self, times[0])) if times else 0.0

    def wrong(self) -> str:
        """Return what is wrong with the fields, in words; "" for nothing."""
        if self.needs_time and not self.time_us > 0:
            return f"do.us = {self.time_us}; a fault of kind {self.name} takes more than 0"
        if not 0 <= self.time_us <= self.time_us_max:
            return f"do.us = {self.time_us}; must be at least 0 and at most {self.time_us_max:.0f}"
        return ""

    def added_to(self, decision: Decision) -> Decision:
        """Return a decision that other faults have made at the same point, with what this kind asks added."""
        return replace(decision, delay_us=decision.delay_us + self.time_us)


class Delay(Kind, frozen=True, tag="delay"):
    """An operation or a message comes later."""

    what = "happens `us` later than it would"
    timing = True
    needs_time = True
    delay_us: float = msgspec.field(default=0.0, name="us")


class Stall(Kind, frozen=True, tag="stall"):
    """An operation waits for a moment of virtual time."""

    what = "does not happen before the virtual time `us`"
    timing = True
    needs_time = True
    time_us_max = STALL_UNTIL_US_MAX
    until_us: float = msgspec.field(default=0.0, name="us")

    def added_to(self, decision: Decision) -> Decision:
        """Return the decision with the later of two stalls."""
        return replace(decision, stall_until_us=max(self.until_us, decision.stall_until_us or 0.0))


class Reorder(Kind, frozen=True, tag="reorder"):
    """An operation lets another stream pass."""

    what = "lets another stream's next operation go first"
    timing = True

    def added_to(self, decision: Decision) -> Decision:
        """Return the decision to let another stream pass."""
        return replace(decision, reorder=True)


class Drop(Kind, frozen=True, tag="drop"):
    """A message never arrives."""

    what = "is lost"


class Duplicate(Kind, frozen=True, tag="duplicate"):
    """A message arrives twice."""

    what = "comes twice"


class Fail(Kind, frozen=True, tag="fail"):
    """A read or a write fails, and its initiator learns of it."""

    what = "delivers nothing, and its completion says so"


class Tear(Kind, frozen=True, tag="tear"):
    """A file is written in part."""

    what = "is cut short, and nobody is told"


class Kill(Kind, frozen=True, tag="kill"):
    """A process dies."""

    what = "is gone from one moment to the next; what it had posted still lands"


class Evict(Kind, frozen=True, tag="evict"):
    """The prefix cache loses tokens that no request holds."""

    what = "gives up `tokens` of what nobody holds"
    tokens: int = 0

    def wrong(self) -> str:
        """Return what is wrong with the fields, in words; "" for nothing."""
        return "" if self.tokens > 0 else f"do.tokens = {self.tokens}; say how many cached tokens to evict, at least 1"

    def added_to(self, decision: Decision) -> Decision:
        """Return the decision with this many tokens more to evict."""
        return replace(decision, evict_tokens=decision.evict_tokens + self.tokens)


class Abort(Kind, frozen=True, tag="abort"):
    """The user cancels an answer."""

    what = "is cancelled `us` after it was asked for; the session goes on with what there is"
    after_us: float = msgspec.field(default=0.0, name="us")


class Disconnect(Kind, frozen=True, tag="disconnect"):
    """The client loses its connection and comes back."""

    what = "is lost `us` after the request was sent; the client comes back and asks again"
    after_us: float = msgspec.field(default=0.0, name="us")


class Slow(Kind, frozen=True, tag="slow"):
    """The client reads slowly."""

    what = "pauses `us` after each piece"
    needs_time = True
    pause_us: float = msgspec.field(default=0.0, name="us")


class Burst(Kind, frozen=True, tag="burst"):
    """Requests are held and sent together."""

    what = "waits for the next full `us`, so that many come at once"
    needs_time = True
    period_us: float = msgspec.field(default=0.0, name="us")


class Order(Kind, frozen=True, tag="order"):
    """A session waits until another one has been answered."""

    what = "waits, `us` at most, until another session was answered: A, B, then A again"
    wait_us_max: float = msgspec.field(default=0.0, name="us")


class Flip(Kind, frozen=True, tag="flip"):
    """A bit flips."""

    what = "has one bit of one row flipped"
    corrupting = True


class Zero(Kind, frozen=True, tag="zero"):
    """A page is zeroed."""

    what = "is zeroed"
    corrupting = True


class Nan(Kind, frozen=True, tag="nan"):
    """A page becomes NaN."""

    what = "is overwritten with NaN"
    corrupting = True


class Swap(Kind, frozen=True, tag="swap"):
    """Two pages change places."""

    what = "has changed places with another page of its layer and component"
    corrupting = True


class Stale(Kind, frozen=True, tag="stale"):
    """A write to a page is lost."""

    what = "holds what it held when it was handed out: the write to it was lost"
    corrupting = True


class Misdirect(Kind, frozen=True, tag="misdirect"):
    """A write goes to another page."""

    what = "is stale, and what was written to it is in another page"
    corrupting = True


class Partial(Kind, frozen=True, tag="partial"):
    """A write to a page is torn."""

    what = "is stale from some row on: the write to it was torn"
    corrupting = True


AnyKind = (
    Delay | Stall | Reorder | Drop | Duplicate | Fail | Tear | Kill | Evict | Abort | Disconnect | Slow | Burst | Order
    | Flip | Zero | Nan | Swap | Stale | Misdirect | Partial
)  # fmt: skip
KINDS: dict[str, type[Kind]] = {kind.__struct_config__.tag: kind for kind in get_args(AnyKind)}
