"""A server at a URL as a target."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from detectors.answers.clean_cache import ORACLES, read_calibration
from detectors.base import DetectorVerdict
from repro.base.errors import UsageError
from repro.fault.aftermath import Corruptions
from repro.fault.injector import Injector
from repro.load.history import characters_per_four
from repro.load.plan import LoadResult
from repro.record.redact import redacted_check, redacted_error
from repro.run.answer_detectors import AnswerDetectors, acceptance_rules, nonces_of, vocabulary_of
from repro.run.checkpoint import load_checkpoint
from repro.run.judge.asked_again import CleanCacheRules, judge_asked_again, judge_clean_cache
from repro.run.options import RunOptions
from repro.run.recorder import Recorder
from repro.run.targets.base import Load
from repro.run.targets.server import Checking, Server
from repro.scenario.schema import Scenario
from repro.scenario.sessions import longest_wait_s
from repro.schedule.strategies import Exploring
from repro.trace.format import Session

NOTED_WAIT_S = 600.0  # a user who watches a server would take it for a hang


class UrlTarget:
    """A running server. Raises UsageError for what is no URL, and for a calibration that does not fit."""

    versions: Mapping[str, str] = MappingProxyType({})
    corruptions: Mapping[str, Corruptions] = MappingProxyType({})
    repeats = False
    explored: Exploring | None = None

    def __init__(self, scenario: Scenario, options: RunOptions, sessions: Sequence[Session]) -> None:
        checkpoint = load_checkpoint(scenario.config)
        self._load = scenario.load
        self._sessions = sessions
        self._redact = options.redact
        self._clean_cache = _clean_cache_rules(options)
        checking = None
        if self._clean_cache is not None:
            checking = Checking(options.oracle_tokens, self._clean_cache.calibration.model)
        self._server = Server(options.url, options.api, checking)
        self.acceptance = acceptance_rules(scenario.acceptance, None)
        vocabulary = vocabulary_of(checkpoint.tokenizer, checkpoint.model.shape.vocab_size, checkpoint.model.eos)
        # The server's model has other token ids; how GLM spells control tokens may still show.
        self.answer_detectors = AnswerDetectors(vocabulary.spelled_only(), nonces_of(sessions))

    @property
    def context_tokens_max(self) -> int | None:
        """Return the model's limit, once the server has been asked."""
        return self._server.context_tokens_max

    def count_tokens(self, text: str) -> int:
        """Return about how many tokens a text has."""
        return characters_per_four(text)

    def prepare(self, injector: Injector, note: Callable[[str], None]) -> None:
        """Note think times that look like a hang, and answers longer than those of the calibration."""
        wait_s = longest_wait_s(self._sessions) * self._load.time_scale
        if wait_s > NOTED_WAIT_S:
            minutes = f"{wait_s / 60:,.0f} minutes"
            note(f"one session waits {minutes} between its turns, as recorded; --time-scale 0 asks at once")
        asked = self._load.answer_tokens_max
        learned = self._clean_cache.calibration.answer_tokens if self._clean_cache else 0
        if asked > learned > 0:
            note(
                f"the calibration is of answers of up to {learned:,} tokens, and up to {asked:,} are asked for: longer "
                f"ones score higher, with more false alarms; `repro calibrate --answer-tokens {asked}` learns them"
            )

    def drive(self, load: Load) -> LoadResult:
        """Run the whole load in real time. With `redact`, the server's own words about its errors end here."""
        result = self._server.drive(load)
        if not self._redact:
            return result
        self._server.checks.done = [redacted_check(check) for check in self._server.checks.done]
        return msgspec.structs.replace(result, target_lost=redacted_error(result.target_lost))

    def evidence(self, recorder: Recorder, on_check: Callable[[int, int], None]) -> list[DetectorVerdict]:
        """Compare answers with what the server answers undisturbed, and on a clean cache."""
        verdicts = judge_asked_again(recorder, self._server.asked_again)
        if self._clean_cache is not None:
            verdicts += judge_clean_cache(recorder, self._server.checks.done, self._clean_cache)
        return verdicts


def _clean_cache_rules(options: RunOptions) -> CleanCacheRules | None:
    """Return how answers are judged on a clean cache, None without a calibration. Raises UsageError for a bad one."""
    if not options.calibration:
        return None
    path = Path(options.calibration)
    calibration = read_calibration(path)
    if calibration.api != options.api:
        raise UsageError(f"{path}: was made with --api {calibration.api}; give it here too, or calibrate anew")
    for oracle in ORACLES:
        if calibration.scores(oracle):
            calibration.limit(oracle, options.false_alarm_rate)
    return CleanCacheRules(calibration, options.false_alarm_rate)
