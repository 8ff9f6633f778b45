"""A scenario: what to load, what to break, what to expect. Reads and checks scenarios/*.toml."""

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from detectors.answers.acceptance import RANGES as ACCEPTANCE_RANGES
from detectors.registry import NAMES as DETECTOR_NAMES
from repro.base.errors import ScenarioError, UsageError, nearest
from repro.base.strict import as_toml, to_struct
from repro.base.toml import tables_of
from repro.engines.sglang import fits
from repro.fault import defects, plan
from repro.fault.kinds import Evict
from repro.fault.plan import Fault
from repro.load.plan import OnAnomaly
from repro.load.shapes import Closed, Recorded, Shape, arrival_times
from repro.record.exercised import Exercised
from repro.scenario.ranges import DETECT_RANGES, LIMIT_RANGES, LOAD_RANGES, TARGET_RANGES, WEEK_S
from repro.serve.config import CONFIGS, EngineConfig
from repro.serve.device.cost import PRESETS
from repro.trace.synth import KINDS

FORMAT = 1
SYNTH = "synth:"
Engine = Literal["bundled", "sglang"]  # the stack of this package, or SGLang's own cache classes
ENGINES: tuple[Engine, ...] = get_args(Engine)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table of a scenario file."""


class LoadSpec(_Table, frozen=True):
    """What the clients do. `trace` is "synth:KIND", or one or several files and folders."""

    sessions: int = 8  # a trace may have more: the first ones are asked
    concurrency: int = 8
    trace: str | tuple[str, ...] = "synth:code-review"
    only_sessions: tuple[int, ...] | None = None  # numbers from 0 of the sessions that are asked; None: all
    scale_tokens: float = 1.0  # shrinks the lengths of traces, and keeps their prefixes
    turns: int | None = None  # turns asked, the last ones; what came before is recorded history
    requests: int | None = None  # turns in all, handed out to the sessions in rounds; None: all
    prompt_tokens: int = 4096  # a synthesised session's history grows so long
    gap_s: tuple[float, float] = (0.0, 0.0)  # think and tool time between the turns of a synthesised session
    answer_tokens_max: int = 160
    history: Literal["recorded", "generated"] = "recorded"
    time_scale: float = 1.0
    shape: Shape = Closed()
    on_anomaly: OnAnomaly = (
        "report"  # abort-retry gives up an answer that a detector convicts in its stream, and asks again
    )
    anomaly_retries_max: int = 1  # retries of one turn
    nonces: bool = False  # each session of a trace gets a line with a nonce, by which a leak shows

    @property
    def synthesised(self) -> str | None:
        """Return the kind of sessions to synthesise; None where `trace` names files."""
        is_kind = isinstance(self.trace, str) and self.trace.startswith(SYNTH)
        return str(self.trace).removeprefix(SYNTH) if is_kind else None


class AcceptanceSpec(_Table, frozen=True):
    """How acceptance is judged, as `detectors.answers.acceptance.AcceptanceRules` says; None: as it is by default.

    A scenario that has it asks for the detector: a target that tells no counts is unknown then.
    """

    length_min: float | None = None
    rate_max: float | None = None
    tokens_min: int | None = None
    profile: str | None = None  # a file that `repro profile` has written
    false_alarm_rate: float | None = None
    arl_tokens: float | None = None


class DetectSpec(_Table, frozen=True):
    """How closely the detectors look."""

    pages_sampled: int = 1  # ordering watches one page in so many; which ones, the seed says


class Limits(_Table, frozen=True):
    """Bounds of a run. Reaching one ends the run; what was done until then is judged."""

    wall_s: float = 600.0  # real time, the oracle's included
    requests: int = 100_000


class Expect(_Table, frozen=True):
    """What tests and the nightly job expect; never changes an exit code."""

    detectors: tuple[str, ...] = ()


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario and its file both say."""

    title: str
    about: str = ""
    defects: tuple[str, ...] = ()
    load: LoadSpec = LoadSpec()
    faults: tuple[Fault, ...] = msgspec.field(default=(), name="fault")
    exercise: dict[str, int] = {}
    acceptance: AcceptanceSpec | None = None
    detect: DetectSpec = DetectSpec()
    limits: Limits = Limits()
    expect: Expect = Expect()


class ScenarioFile(_Parts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables of a scenario file, unchecked."""

    format: int
    target: dict[str, Any] = {}


class Scenario(_Parts, frozen=True, kw_only=True):
    """One scenario, checked."""

    name: str
    engine: Engine
    config: EngineConfig  # [target], with its overrides applied
    source: str  # the TOML text


EXERCISE = Exercised.__struct_fields__


def bundled_names(folder: str = "") -> list[str]:
    """Return the names of the scenarios in the package, or of its "experiments" or "suites", sorted."""
    entries = (files("scenarios") / folder).iterdir()
    return sorted(entry.name[:-5] for entry in entries if entry.name.endswith(".toml"))


def bundled_text(name: str, folder: str = "") -> str:
    """Return the TOML text of one of `bundled_names(folder)`."""
    return (files("scenarios") / folder / f"{name}.toml").read_text(encoding="utf-8")


def find(name: str) -> Scenario:
    """Return a scenario by its bundled name or by the path of a TOML file."""
    if name.endswith(".toml") or os.sep in name:
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ScenarioError(f"{name}: can't read the scenario file ({error.strerror}); check the path") from error
        except ValueError as error:
            raise ScenarioError(f"{name}: not UTF-8 text ({error}); save it as UTF-8") from error
        return parse(text, path.stem, name)
    experiments, scenarios = bundled_names("experiments"), bundled_names()
    if name in experiments:
        raise ScenarioError(f'"{name}" is an experiment; `repro run {name}` runs it')
    if name not in scenarios:
        beside = f"; the file beside you is `repro run ./{name}.toml`" if Path(f"{name}.toml").is_file() else ""
        raise ScenarioError(
            f'"{name}" is no scenario; nearest: "{nearest(name, [*scenarios, *experiments])}". '
            f"`repro list` shows them; a path to a .toml file works too{beside}"
        )
    return parse(bundled_text(name), name, f"scenarios/{name}.toml")


def parse(text: str, name: str, where: str) -> Scenario:
    """Return the scenario of a TOML text; raises ScenarioError with file, key and what was expected."""
    raw = tables_of(text, where)
    if "format" not in raw:
        raise ScenarioError(f'{where}: the key "format" is missing')
    if raw["format"] != FORMAT:
        raise ScenarioError(f"{where}: format = {as_toml(raw['format'])}; this version reads format = {FORMAT}")
    return checked(to_struct(raw, ScenarioFile, where), text, name, where)


def checked(file: ScenarioFile, source: str, name: str, where: str) -> Scenario:
    """Return the scenario of a file whose text is `source`; raises ScenarioError for values that make no sense."""
    engine, config = _config(file.target, where)
    _check(file, config, where)
    if engine == "sglang":
        fits.check(config, file.defects, tuple(fault.at for fault in file.faults), where)
    parts = {part: getattr(file, part) for part in _Parts.__struct_fields__}
    return Scenario(name=name, engine=engine, config=config, source=source, **parts)


def _check(file: ScenarioFile, config: EngineConfig, where: str) -> None:
    defects.check(file.defects, config, f"{where} defects")
    plan.check(file.faults, where)
    for number, fault in enumerate(file.faults, 1):
        if isinstance(fault.do, Evict) and fault.do.tokens < config.page_tokens:
            raise ScenarioError(
                f"{where} [[fault]] {number}: do.tokens = {fault.do.tokens}; whole pages are evicted, "
                f"and a page has {config.page_tokens} tokens"
            )
    for key in file.exercise:
        if key not in EXERCISE:
            raise ScenarioError(f'{where} [exercise]: unknown floor {key}; nearest: "{nearest(key, EXERCISE)}"')
    _check_ranges(file.exercise, dict.fromkeys(file.exercise, (0, 10**12)), f"{where} [exercise]")
    if file.acceptance is not None:
        _check_ranges(msgspec.structs.asdict(file.acceptance), ACCEPTANCE_RANGES, f"{where} [acceptance]")
    _check_ranges(msgspec.structs.asdict(file.detect), DETECT_RANGES, f"{where} [detect]")
    _check_ranges(msgspec.structs.asdict(file.limits), LIMIT_RANGES, f"{where} [limits]")
    for name in file.expect.detectors:
        if name not in DETECTOR_NAMES:
            raise ScenarioError(
                f'{where} [expect]: detectors: "{name}" is no detector; nearest: "{nearest(name, DETECTOR_NAMES)}"'
            )
    _check_load(file.load, f"{where} [load]")


def _check_load(load: LoadSpec, where: str) -> None:
    _check_ranges(msgspec.structs.asdict(load), LOAD_RANGES, where)
    low, high = load.gap_s
    if not 0 <= low <= high <= WEEK_S:
        raise ScenarioError(
            f"{where}: gap_s = [{low}, {high}]; must be seconds, the shortest and the longest gap, at most a week"
        )
    _check_shape(load, where)
    if not load.trace:
        raise ScenarioError(f'{where}: trace is empty; give a file, a folder, or "{SYNTH}{next(iter(KINDS))}"')
    kind = load.synthesised
    if kind is not None and kind not in KINDS:
        raise ScenarioError(f'{where}: trace = "{load.trace}"; nearest: "{SYNTH}{nearest(kind, KINDS)}"')
    if not isinstance(load.trace, str) and (found := [each for each in load.trace if each.startswith(SYNTH)]):
        raise ScenarioError(f'{where}: trace: "{found[0]}" stands alone, not in an array: trace = "{found[0]}"')


def _check_shape(load: LoadSpec, where: str) -> None:
    try:
        times_s = arrival_times(load.shape, 0, [0.0] * load.sessions)
    except UsageError as error:
        raise ScenarioError(f"{where}: {error}") from error
    if not max(times_s) <= WEEK_S:
        raise ScenarioError(f"{where}: shape: the last session would start after more than a week; raise the rate")
    if isinstance(load.shape, Recorded) and load.synthesised is not None:
        raise ScenarioError(f'{where}: shape.kind = "trace" needs a recorded trace; "{load.trace}" has no arrivals')


def _check_ranges(values: Mapping[str, object], ranges: Mapping[str, tuple[float, float]], where: str) -> None:
    for key, (least, most) in ranges.items():
        value = values[key]
        if isinstance(value, int | float) and not least <= value <= most:
            raise ScenarioError(f"{where}: {key} = {value}; must be at least {least:g} and at most {most:,.15g}")


def _config(target: dict[str, Any], where: str) -> tuple[Engine, EngineConfig]:
    """Return the engine that [target] names, and its configuration."""
    overrides, place = dict(target), f"{where} [target]"
    engine = overrides.pop("engine", "bundled")
    if engine not in ENGINES:
        raise ScenarioError(f'{place}: engine = {as_toml(engine)}; nearest: "{nearest(str(engine), ENGINES)}"')
    name = overrides.pop("config", "tiny-hicache")
    if not isinstance(name, str) or name not in CONFIGS:
        raise ScenarioError(f'{place}: config = {as_toml(name)}; nearest: "{nearest(str(name), CONFIGS)}"')
    _check_ranges(overrides, {key: TARGET_RANGES[key] for key in overrides if key in TARGET_RANGES}, place)
    config = to_struct(msgspec.to_builtins(CONFIGS[name]) | overrides, EngineConfig, where, ("target",))
    if config.cost not in PRESETS:
        raise ScenarioError(f'{place}: cost = "{config.cost}"; nearest: "{nearest(config.cost, PRESETS)}"')
    return engine, config
