"""A scenario: what to load, what to break, what to expect. Reads and checks scenarios/*.toml."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import msgspec

from repro.base.errors import ScenarioError, UsageError, nearest
from repro.fault import plan
from repro.fault.defects import with_defects
from repro.fault.plan import Fault
from repro.load.shapes import Closed, Shape, check_shape
from repro.record.exercised import Exercised
from repro.serve.config import CONFIGS, EngineConfig
from repro.strict import to_struct
from repro.trace.synth import KINDS

FORMAT = 1


class LoadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the clients do. `trace` is "synth:KIND", or one or several files and folders."""

    sessions: int = 8  # at most, where the trace has more
    concurrency: int = 8
    trace: str | tuple[str, ...] = "synth:code-review"
    scale_tokens: float = 1.0  # shrinks the lengths of traces, and keeps their prefixes
    turns: int | None = None  # turns asked, the last ones; what came before is recorded history
    prompt_tokens: int = 4096  # how long a synthesised session's history grows
    gap_s: tuple[float, float] = (0.0, 0.0)  # think and tool time between the turns of a synthesised session
    answer_tokens_max: int = 160
    history: Literal["recorded", "generated"] = "recorded"
    time_scale: float = 1.0
    shape: Shape = Closed()


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Bounds of a run; reaching one is said in the verdict."""

    wall_s: float = 600.0
    requests: int = 100_000


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What tests and the nightly job expect; never changes an exit code."""

    detectors: tuple[str, ...] = ()


class Scenario(msgspec.Struct, frozen=True):
    """One scenario, checked. `config` is the target with its overrides applied."""

    name: str
    title: str
    about: str
    defects: tuple[str, ...]
    config: EngineConfig
    load: LoadSpec
    faults: tuple[Fault, ...]
    exercise: dict[str, int]
    limits: Limits
    expect: Expect
    source: str  # the TOML text


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    title: str
    about: str = ""
    defects: tuple[str, ...] = ()
    target: dict[str, Any] = {}
    load: LoadSpec = LoadSpec()
    fault: tuple[Fault, ...] = ()
    exercise: dict[str, int] = {}
    limits: Limits = Limits()
    expect: Expect = Expect()


EXERCISE = Exercised.__struct_fields__


def bundled_names() -> list[str]:
    """Return the names of the scenarios in the package, sorted."""
    return sorted(entry.name[:-5] for entry in files("scenarios").iterdir() if entry.name.endswith(".toml"))


def find(name: str) -> Scenario:
    """Return a scenario by its bundled name or by the path of a TOML file."""
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ScenarioError(f"{name}: can't read the scenario file: {error}") from error
        return parse(text, path.stem, name)
    if name not in bundled_names():
        raise ScenarioError(
            f'"{name}" is no scenario; nearest: "{nearest(name, bundled_names())}". '
            "`repro list` shows them; a path to a .toml file works too"
        )
    resource = files("scenarios") / f"{name}.toml"
    return parse(resource.read_text(encoding="utf-8"), name, f"scenarios/{name}.toml")


def parse(text: str, name: str, where: str) -> Scenario:
    """Return the scenario of a TOML text; raises ScenarioError with file, key and what was expected."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{where}: not valid TOML: {error}") from error
    if raw.get("format", FORMAT) != FORMAT:
        raise ScenarioError(f"{where}: format = {raw['format']}; this version reads format = {FORMAT}")
    file = to_struct(raw, _File, where)
    config = _config(file.target, where)
    _check(file, config, where)
    return Scenario(
        name, file.title, file.about, file.defects, config, file.load, file.fault, file.exercise, file.limits,
        file.expect, text,
    )  # fmt: skip


def _check(file: _File, config: EngineConfig, where: str) -> None:
    with_defects(file.defects, f"{where} defects")
    plan.check(file.fault, where)
    for number, fault in enumerate(file.fault, 1):
        if 0 < fault.do.tokens < config.page_tokens:
            raise ScenarioError(
                f"{where} [[fault]] {number}: do.tokens = {fault.do.tokens}; whole pages are evicted, "
                f"and a page has {config.page_tokens} tokens"
            )
    for key, floor in file.exercise.items():
        if key not in EXERCISE:
            raise ScenarioError(f'{where} [exercise]: unknown floor {key}; nearest: "{nearest(key, EXERCISE)}"')
        _at_least(f"{where} [exercise]: {key}", floor, 0)
    _at_least(f"{where} [limits]: wall_s", file.limits.wall_s, 1)
    _at_least(f"{where} [limits]: requests", file.limits.requests, 1)
    _check_load(file.load, f"{where} [load]")


def _check_load(load: LoadSpec, where: str) -> None:
    for key in ("sessions", "concurrency", "turns", "prompt_tokens", "answer_tokens_max"):
        value = getattr(load, key)
        if value is not None:
            _at_least(f"{where}: {key}", value, 1)
    for key in ("scale_tokens", "time_scale"):
        _at_least(f"{where}: {key}", getattr(load, key), 0)
    low, high = load.gap_s
    if not 0 <= low <= high < float("inf"):
        raise ScenarioError(f"{where}: gap_s = [{low}, {high}]; must be seconds, the shortest and the longest gap")
    try:
        check_shape(load.shape)
    except UsageError as error:
        raise ScenarioError(f"{where}: {error}") from error
    for trace in (load.trace,) if isinstance(load.trace, str) else load.trace:
        kind = trace.removeprefix("synth:")
        if kind != trace and kind not in KINDS:
            raise ScenarioError(f'{where}: trace = "{trace}"; nearest: "synth:{nearest(kind, KINDS)}"')
    if not load.trace:
        raise ScenarioError(f'{where}: trace is empty; give a file, a folder, or "synth:{next(iter(KINDS))}"')


def _at_least(what: str, value: float, least: float) -> None:
    if not least <= value < float("inf"):
        raise ScenarioError(f"{what} = {value}; must be at least {least}")


def _config(target: dict[str, Any], where: str) -> EngineConfig:
    overrides = dict(target)
    name = overrides.pop("config", "tiny-hicache")
    if name not in CONFIGS:
        raise ScenarioError(f'{where} [target]: config = "{name}"; nearest: "{nearest(str(name), CONFIGS)}"')
    merged = msgspec.to_builtins(CONFIGS[name]) | overrides
    return to_struct(merged, EngineConfig, where, ("target",))
