"""The words that a verdict can be, each with its exit code: the only table of either."""

from enum import StrEnum
from typing import Self


class VerdictWord(StrEnum):
    """What a run or a command came to. Where several hold: failed, anomaly, vacuous, inconclusive, clean."""

    exit_code: int

    CLEAN = "clean", 0  # every detector that applies was silent, and the run did what its scenario is about
    ANOMALY = "anomaly", 1  # a detector convicts, or a command's expectation was not met
    USAGE_ERROR = "usage_error", 2  # the command line or a file is wrong
    VACUOUS = "vacuous", 3  # the run proves nothing: a fault never fired, or a floor was not reached
    FAILED = "failed", 4  # the harness or the target broke, or a deterministic run was not deterministic
    INCONCLUSIVE = "inconclusive", 5  # a detector that applies could not tell, or runs are missing

    def __new__(cls, word: str, exit_code: int) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.exit_code = exit_code
        return member
