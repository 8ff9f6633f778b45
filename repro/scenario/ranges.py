"""What the numbers of a scenario may be. The help texts show them too, without the schema and what it imports."""

from repro.trace.scale import SCALE_MIN

WEEK_S = 7 * 24 * 3600.0  # virtual time; far beyond it the clock's ticks get coarse

# The least and the most that a number may be: beyond it is a slip of the pen, and no memory would do.
LOAD_RANGES = {
    "sessions": (1, 100_000),
    "concurrency": (1, 65_536),
    "turns": (1, 100_000),
    "requests": (1, 1_000_000_000),
    "prompt_tokens": (1, 10_000_000),
    "answer_tokens_max": (1, 1_000_000),
    "scale_tokens": (SCALE_MIN, 1.0),
    "time_scale": (0, 1e6),
    "anomaly_retries_max": (0, 100),
}
TARGET_RANGES = {
    "page_tokens": (1, 4096),
    "device_pages": (2, 1_000_000),
    "host_pages": (1, 1_000_000),
    "storage_pages": (0, 1_000_000),
    "rows": (1, 4096),
    "context_tokens": (256, 10_000_000),
    "chunk_tokens": (1, 1_000_000),
    "waiting_max": (1, 1_000_000),
    "copy_group_pages": (1, 1_000_000),
}
DETECT_RANGES = {"pages_sampled": (1, 4096)}
LIMIT_RANGES = {"wall_s": (1, WEEK_S), "requests": (1, 1_000_000_000)}
