"""Prometheus text for /metrics, with SGLang's names, so that its dashboards read it."""

from bisect import bisect_left
from collections.abc import Iterator

from repro.serve.types import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TIME_TO_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
INTER_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
END_TO_END_S = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)

# Field of EngineStats -> (kind, name after "sglang:", help).
FIELDS: dict[str, tuple[str, str, str]] = {
    "running_requests": ("gauge", "num_running_reqs", "Requests in the running batch."),
    "waiting_requests": ("gauge", "num_queue_reqs", "Requests that wait for admission."),
    "device_used": ("gauge", "num_used_tokens", "Tokens held by the device KV pool."),
    "device_total": ("gauge", "max_total_num_tokens", "Tokens that fit into the device KV pool."),
    "host_used": ("gauge", "hicache_host_used_tokens", "Tokens held by the host KV tier."),
    "host_total": ("gauge", "hicache_host_total_tokens", "Tokens that fit into the host KV tier."),
    "prompt_tokens_total": ("counter", "prompt_tokens_total", "Prompt tokens of admitted requests."),
    "generation_tokens_total": ("counter", "generation_tokens_total", "Tokens generated."),
    "cached_device_tokens_total": (
        "counter",
        "cached_tokens_total",
        "Prompt tokens found in the device prefix cache.",
    ),
    "load_back_tokens_total": ("counter", "load_back_tokens_total", "Tokens copied from host to device."),
    "evicted_tokens_total": ("counter", "evicted_tokens_total", "Tokens evicted from the device."),
    "aborted_requests_total": ("counter", "num_aborted_requests_total", "Requests aborted."),
    "steps_total": ("counter", "num_steps_total", "Engine steps."),
}


class Histogram:
    """Counts of observed seconds by bucket; bounds are inclusive, as Prometheus wants them."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count `times` observations of this many seconds."""
        self._counts[bisect_left(self._bounds_s, seconds)] += times
        self._sum_s += seconds * times

    def lines(self, name: str, label: str) -> Iterator[str]:
        """Yield the samples: cumulative buckets, sum, count."""
        total = 0
        for bound, count in zip([*map(str, self._bounds_s), "+Inf"], self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{label},le="{bound}"}} {total}'
        yield f"{name}_sum{{{label}}} {self._sum_s}"
        yield f"{name}_count{{{label}}} {total}"


class Latency:
    """What the server measures itself, on its own clock: first token, between tokens, whole request."""

    def __init__(self) -> None:
        self.first_token = Histogram(TIME_TO_FIRST_TOKEN_S)
        self.inter_token = Histogram(INTER_TOKEN_S)
        self.end_to_end = Histogram(END_TO_END_S)

    def lines(self, label: str) -> Iterator[str]:
        """Yield the three histograms."""
        for name, text, histogram in (
            ("sglang:time_to_first_token_seconds", "Time to the first token.", self.first_token),
            ("sglang:inter_token_latency_seconds", "Time between tokens.", self.inter_token),
            ("sglang:e2e_request_latency_seconds", "Time to the end of a request.", self.end_to_end),
        ):
            yield from _heading("histogram", name, text)
            yield from histogram.lines(name, label)


class RequestTimer:
    """Observes one request from its submission on."""

    def __init__(self, latency: Latency, now_s: float) -> None:
        self._latency = latency
        self._submitted_s = now_s
        self._token_s: float | None = None  # when the latest token came

    def update(self, now_s: float, tokens: int, finished: bool) -> None:
        """Take note of an update with this many tokens."""
        if tokens and self._token_s is None:
            self._latency.first_token.add(now_s - self._submitted_s)
        elif tokens and self._token_s is not None:  # tokens that come together share the time
            self._latency.inter_token.add((now_s - self._token_s) / tokens, tokens)
        if tokens:
            self._token_s = now_s
        if finished:
            self._latency.end_to_end.add(now_s - self._submitted_s)


def prometheus_text(stats: EngineStats, latency: Latency, model_name: str) -> str:
    """Return everything /metrics says, in Prometheus' text format."""
    label = f'model_name="{_escape(model_name)}"'
    lines: list[str] = []
    for field, (kind, short_name, text) in FIELDS.items():
        name = f"sglang:{short_name}"
        lines += [*_heading(kind, name, text), f"{name}{{{label}}} {getattr(stats, field)}"]
    lines += _ratio("token_usage", "Used share of the device KV pool.", stats.device_used, stats.device_total, label)
    lines += _ratio(
        "cache_hit_rate",
        "Share of prompt tokens found on the device.",
        stats.cached_device_tokens_total,
        stats.prompt_tokens_total,
        label,
    )
    if stats.verify_steps_total:
        lines += _speculation(stats, label)
    return "\n".join([*lines, *latency.lines(label), ""])


def _speculation(stats: EngineStats, label: str) -> list[str]:
    tokens, steps = stats.verify_steps_total + stats.accepted_drafts_total, stats.verify_steps_total
    return [
        *_ratio("spec_accept_length", "Tokens per verify step, since the start.", tokens, steps, label),
        *_ratio(
            "spec_accept_rate",
            "Share of drafts accepted, since the start.",
            stats.accepted_drafts_total,
            stats.drafts_total,
            label,
        ),
    ]


def _ratio(short_name: str, text: str, part: int, whole: int, label: str) -> list[str]:
    name = f"sglang:{short_name}"
    return [*_heading("gauge", name, text), f"{name}{{{label}}} {part / whole if whole else 0.0}"]


def _heading(kind: str, name: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
