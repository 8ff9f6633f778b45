"""Which scenarios SGLang's classes can play: what of [target] means something to them, and which guards they have."""

import msgspec

from repro.base.errors import ScenarioError, nearest
from repro.serve.config import EngineConfig

DEFECTS = ("hicache_early_read",)  # the waits of SGLang #22811, which 0.5.11 has
PAGE_TOKENS = 64  # the only page size of SGLang's index pool on a CUDA device
HONOURED = (
    "name", "model", "numerics", "cost", "page_tokens", "device_pages", "host_pages", "rows", "context_tokens",
    "waiting_max", "write_policy", "free_list", "index_store_waits", "copy_group_pages",
)  # fmt: skip
# Where a fault may be put: the operations of `kernels` and `forward`, and whatever clients do.
FORWARD = ("embed", "store", "index", "attend", "feed_forward", "sample")
POINTS = ("loadback.copy_layer", "writeback.copy_layer", *(f"forward.{name}" for name in FORWARD))
CLIENT = "client."
CHOICES = {
    "numerics": ("stamps",),  # no model answers here
    "page_tokens": (PAGE_TOKENS,),
    "write_policy": ("write_through", "write_through_selective"),  # write_back stops the whole host
    "free_list": ("lifo", "deferred_sorted"),  # SGLang's allocator, without and with `need_sort`
}


def check(config: EngineConfig, defects: tuple[str, ...], faults: tuple[str, ...], where: str) -> None:
    """Raise ScenarioError for what would have no effect on SGLang's classes, or could not be done with them.

    `faults` are the points that a scenario puts faults at, in its order.
    """
    for name in defects:
        if name not in DEFECTS:
            raise ScenarioError(
                f'{where} defects: "{name}" is of the bundled stack; with engine = "sglang" there is '
                f'"{nearest(name, DEFECTS)}"'
            )
    for number, point in enumerate(faults, 1):
        if point not in POINTS and not point.startswith(CLIENT):
            raise ScenarioError(
                f'{where} [[fault]] {number}: at = "{point}" is of the bundled stack; with engine = "sglang" there is '
                f'"{nearest(point, POINTS)}"'
            )
    values, usual = msgspec.structs.asdict(config), msgspec.structs.asdict(EngineConfig())
    for key, value in values.items():
        if key not in HONOURED and value != usual[key]:
            raise ScenarioError(
                f'{where} [target]: {key} means nothing to engine = "sglang", whose cache and scheduler differ; '
                f"leave it out (it takes {', '.join(HONOURED[2:])})"
            )
        if value not in (choices := CHOICES.get(key, (value,))):
            takes = " or ".join(map(_written, choices))
            raise ScenarioError(f'{where} [target]: {key} = {_written(value)}; engine = "sglang" takes {takes}')
    if config.host_pages <= config.device_pages:
        raise ScenarioError(
            f"{where} [target]: host_pages = {config.host_pages}, device_pages = {config.device_pages}; SGLang wants "
            "more host memory than device memory"
        )


def _written(value: object) -> str:
    """Return a value as a scenario file writes it."""
    return msgspec.json.encode(value).decode()
