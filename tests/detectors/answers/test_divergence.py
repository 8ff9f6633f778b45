"""Answers beside their clean decode."""

from detectors.answers.divergence import AnswerPair, divergence
from detectors.evidence import WrongToken


def compared(first_difference: int = -1, logit_gap: float = 0.0, request: str = "a") -> AnswerPair:
    return AnswerPair(request, 5.0, first_difference, logit_gap, "got", "clean")


def test_equal_answers_are_clean() -> None:
    verdict = divergence([compared(), compared()], asked=2)
    assert (verdict.answer, verdict.checked, verdict.why) == ("clean", 2, "")


def test_a_difference_is_named_with_its_token_and_gap() -> None:
    verdict = divergence([compared(), compared(17, 7.5, "b")], asked=2)
    (finding,) = verdict.findings
    assert verdict.answer == "anomaly"
    assert finding.claim == "b: token 17 is not what the model says on a clean cache (logit gap 7.500)"
    assert finding.evidence == WrongToken("b", first_difference=17, logit_gap=7.5, got="got", clean="clean")


def test_a_near_tie_is_called_one() -> None:
    (finding,) = divergence([compared(0, 1e-4)], asked=1).findings
    assert finding.claim.endswith("(logit gap 0.000, a near-tie)")


def test_answers_that_could_not_be_decoded_again_are_unknown_never_clean() -> None:
    verdict = divergence([compared()], asked=3)
    assert (verdict.answer, verdict.why) == ("unknown", "2 of 3 answers could not be decoded again")


def test_a_difference_convicts_even_when_others_could_not_be_decoded() -> None:
    verdict = divergence([compared(3, 1.0)], asked=2)
    assert (verdict.answer, verdict.why) == ("anomaly", "1 of 2 answers could not be decoded again")


def test_no_answer_to_decode_is_unknown_and_says_why() -> None:
    verdict = divergence([], asked=0)
    assert (verdict.answer, verdict.why) == ("unknown", "there was no answer to decode again")
