"""How a run folder is closed: with a verdict, or with an error that carries the folder's path."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import msgspec

from repro.base.errors import HarnessError, RecordError, ReproError, StoppedError, TargetError, UsageError
from repro.load.lag import Quantiles
from repro.record.counts import compared_of, contexts_cut_of, funnel_of, retries_of
from repro.record.folder import RunFolder, write_meta
from repro.record.verdict import ClientLag, DetectorAnswer, RunVerdict
from repro.run.judge.sums import first_findings, signature_counts
from repro.run.judge.verdict import Judgement, RunEvidence
from repro.run.options import RunOptions
from repro.run.recorder import Recorder
from repro.run.targets.base import Target
from repro.scenario.schema import Scenario
from repro.schedule import token as tokens
from repro.schedule.token import Token

CRASH_FILE = "crash.txt"
EXPECTED = (UsageError, TargetError, RecordError)  # their sentence says all


def close_with_verdict(
    recorder: Recorder,
    scenario: Scenario,
    options: RunOptions,
    target: Target,
    evidence: RunEvidence,
    judgement: Judgement,
) -> RunVerdict:
    """Write requests and findings, take the fingerprint, make the token, and return the verdict.

    `scenario` is the file as it is, without the overrides of `options`: the token names it by its text.
    """
    folder, limits, records, findings = recorder.folder, recorder.limits, recorder.records, evidence.findings
    for record in records:  # each was written when it ended, before the detectors marked it; this one replaces it
        folder.add_request(record)
    for finding in findings:
        folder.add_finding(finding)
    fingerprint = folder.fingerprint.hexdigest()
    verdict = RunVerdict(
        word=judgement.word,
        why=judgement.why,
        scenario=scenario.name,
        seed=options.seed,
        control=options.control,
        requests=len(records),
        findings={each.detector: sum(f.count for f in each.findings) for each in evidence.verdicts if each.findings},
        signatures=signature_counts(findings),
        first=first_findings(findings, records),
        detectors={each.detector: each.answer for each in evidence.verdicts},
        oracle=compared_of(records),
        contexts_cut=contexts_cut_of(records, target.context_tokens_max or 0),
        client_lag_ms=_client_lag(evidence.result.lag),
        funnel=funnel_of(records),
        retries=retries_of(records),
        faults=dict(evidence.fault_outcomes),
        exercised=evidence.exercised,
        virtual_s=round(evidence.result.duration_s, 6),
        cut=evidence.cut,
        fingerprint=fingerprint,
        token=_token(scenario, options, fingerprint) if target.repeats and not limits.by_accident else "",
        run_dir=str(folder.path),
        report=str(folder.report_path),  # a command writes it once the run is over, or empties this field
    )
    answers = {each.detector: DetectorAnswer(each.answer, each.checked, each.why) for each in evidence.verdicts}
    folder.close("interrupted" if limits.by_accident else "finished", verdict=verdict, detectors=answers)
    return verdict


def _client_lag(lag: Quantiles) -> ClientLag:
    return ClientLag(lag.count, round(lag.p50_s * 1e3, 3), round(lag.p99_s * 1e3, 3), round(lag.max_s * 1e3, 3))


def _token(scenario: Scenario, options: RunOptions, fingerprint: str) -> str:
    return Token(
        scenario=tokens.scenario_hash(scenario.source),
        seed=options.seed,
        control=options.control,
        no_faults=options.no_faults,
        schedule=options.schedule,
        overrides=options.overrides,
        fingerprint=fingerprint[: tokens.FINGERPRINT_DIGITS],
        code=tokens.code_hash(),
        machine=tokens.machine_hash(),
    ).encode()


@contextmanager
def closed_on_error(folder: RunFolder) -> Iterator[None]:
    """Close the folder whatever goes wrong inside; what comes out is a ReproError with the folder's path."""
    try:
        yield
    except KeyboardInterrupt as error:
        stopped = StoppedError("stopped by Ctrl-C before there was a verdict")
        _close_after(folder, "interrupted", stopped)
        raise stopped from error
    except ReproError as error:
        if not isinstance(error, EXPECTED):
            _write_crash(folder, error)
        _close_after(folder, "failed", error)
        raise
    except MemoryError as error:
        out = HarnessError(f"out of memory: {error}; make the target's pools, the sessions or the concurrency smaller")
        _close_after(folder, "failed", out)
        raise out from error
    except Exception as error:
        crash = HarnessError(f"a bug of the harness: {type(error).__name__}: {error}; {CRASH_FILE} has the place")
        _write_crash(folder, error)
        _close_after(folder, "failed", crash)
        raise crash from error


def _close_after(folder: RunFolder, state: Literal["interrupted", "failed"], error: ReproError) -> None:
    error.run_dir = str(folder.path)
    with suppress(RecordError):  # the first error is the one to report
        folder.close(state, error=str(error))
        if folder.meta.error != str(error):  # the disk refused while it was being closed with a verdict
            write_meta(folder.path, msgspec.structs.replace(folder.meta, state=state, error=str(error), verdict=None))


def _write_crash(folder: RunFolder, error: BaseException) -> None:
    with suppress(OSError):
        text = "".join(traceback.format_exception(error))
        (folder.path / CRASH_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
