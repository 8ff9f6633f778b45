"""The part of a token that says what was run: small integers, packed seven bits a byte.

Fields with their default are left out: a first number has a bit for each field that follows. A set is a number
with a bit for each member. A deviation is twice the distance to the one before; where it does not go to contender 1,
that number is one larger and the contender follows. Deviations come last and need no count.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from repro.schedule.overrides import Overrides
from repro.schedule.schedule import STRATEGIES, WINDOWS_US, Schedule

_FIELDS = (
    "stamps", "sessions", "turns", "prompt_tokens", "answer_tokens", "device_pages", "faults", "window", "strategy",
    "seed", "steps", "context_tokens", "requests", "deviations", "weights", "gap_ms", "fires_after", "host_pages",
    "turns_in_all", "abort_ms", "decode_pages",
)  # fmt: skip
_SETS = ("sessions", "faults")
_ORDER = sorted(_FIELDS, key=lambda name: name == "deviations")  # deviations come last


def pack(seed: int, schedule: Schedule, overrides: Overrides) -> bytes:
    """Return the bytes that `unpack` reads."""
    values: dict[str, tuple[int, ...]] = {}
    if schedule.strategy != "timed":
        values["strategy"] = (STRATEGIES.index(schedule.strategy),)
    plain = Schedule()
    for name in ("seed", "window", "steps"):
        if getattr(schedule, name) != getattr(plain, name):
            values[name] = (getattr(schedule, name),)
    if schedule.weights:
        values["weights"] = (len(schedule.weights), *schedule.weights)
    if schedule.deviations:
        values["deviations"] = tuple(_of_deviations(schedule.deviations))
    values |= _of_overrides(overrides)
    mask = sum(1 << place for place, name in enumerate(_FIELDS) if name in values)
    numbers = [seed, *([mask] if mask else ()), *(number for name in _ORDER for number in values.get(name, ()))]
    return b"".join(map(_varint, numbers))


def _of_overrides(overrides: Overrides) -> dict[str, tuple[int, ...]]:
    values: dict[str, tuple[int, ...]] = {}
    for name in Overrides.__struct_fields__:
        value = getattr(overrides, name)
        if name in _SETS and value is not None:
            values[name] = (sum(1 << number for number in value),)
        elif name == "stamps" and value:
            values[name] = ()
        elif name != "stamps" and value is not None:
            values[name] = (value,)
    return values


def _of_deviations(deviations: Iterable[tuple[int, int]]) -> Iterator[int]:
    last = -1
    for step, chosen in deviations:
        yield (step - last - 1) << 1 | (chosen != 1)
        if chosen != 1:
            yield chosen
        last = step


def unpack(packed: bytes) -> tuple[int, Schedule, Overrides]:
    """Return seed, schedule and overrides; raises ValueError for bytes that `pack` does not make."""
    numbers = _numbers(packed)
    try:
        seed = next(numbers)
        mask = next(numbers, 0)
        if mask >> len(_FIELDS):
            raise ValueError("fields that this version does not know")
        present = {name for place, name in enumerate(_FIELDS) if mask >> place & 1}
        values = {name: _read(name, numbers) for name in _ORDER if name in present}
    except StopIteration as error:
        raise ValueError("it ends too early") from error
    if next(numbers, None) is not None:
        raise ValueError("there is more than was announced")
    strategy, window = values.pop("strategy", 0), values.get("window", 0)
    if strategy >= len(STRATEGIES) or window >= len(WINDOWS_US):
        raise ValueError("a strategy that this version does not know")
    of_schedule = {name: values.pop(name) for name in Schedule.__struct_fields__ if name in values}
    return seed, Schedule(STRATEGIES[strategy], **of_schedule), Overrides(**values)


def _read(name: str, numbers: Iterator[int]) -> Any:
    if name == "stamps":
        return True
    if name == "deviations":
        return tuple(_deviations(numbers))
    if name in _SETS:
        bits = next(numbers)
        return tuple(number for number in range(bits.bit_length()) if bits >> number & 1)
    if name == "weights":
        return tuple([next(numbers) for _ in range(next(numbers))])
    return next(numbers)


def _deviations(numbers: Iterator[int]) -> Iterator[tuple[int, int]]:
    step = -1
    for number in numbers:
        step += (number >> 1) + 1
        yield step, next(numbers, 0) if number & 1 else 1


def _varint(number: int) -> bytes:
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*packed, number))


def _numbers(packed: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("it ends within a number")
