"""The result of an experiment, and its page: the steps side by side, and what acceptance metrics find."""

import msgspec
from markupsafe import Markup

from reports import charts
from reports.experiment.separation import Score, Separation
from reports.experiment.steps import PartCounts, StepCounts
from reports.page import environment, page_parts
from reports.rates import interval_text, share_text
from repro.base.verdict_word import VerdictWord

HEADLINES = {
    VerdictWord.CLEAN.exit_code: "Every step came to what was expected of it.",
    VerdictWord.ANOMALY.exit_code: "A step did not come to what was expected of it.",
    VerdictWord.FAILED.exit_code: "Runs died, so the steps cannot be compared.",
    VerdictWord.INCONCLUSIVE.exit_code: "Runs are missing or could not tell, so the steps cannot be compared yet.",
}
ROWS = (
    ("Variant", "", "variant"),
    ("Numerics", "", "numerics"),
    ("Runs", "", "runs"),
    ("Requests", "", "requests"),
    ("Finished", "answers that nobody cut off", "finished"),
    ("Raced", "an access in conflict that nothing orders", "raced"),
    ("Read wrong bytes", "at first hand or by reuse", "corrupted"),
    ("Runs hit", "with such a request", "runs_hit"),
    ("Diverged", "another token than the clean decode", "diverged"),
    ("Visible", "convicted by a text detector", "visible"),
)
OF_ANSWERS = ("diverged", "visible")  # stamps have no answers


class Result(msgspec.Struct, frozen=True):
    """The JSON object of the command line. All rates are simulated: priced by the cost model."""

    experiment: str
    title: str
    about: str
    defects: tuple[str, ...]
    exit_code: int
    verdict: str
    why: tuple[str, ...]
    first_seed: int
    steps: tuple[StepCounts, ...]
    separation: Separation
    missing: int
    folder: str
    report: str
    simulated: bool = True


def render_experiment(result: Result) -> str:
    """Return the page as one HTML file that needs no other."""
    answers = result.separation.answers
    page = environment()
    page.filters |= {
        "cell": _cell,
        "interval": lambda rate: interval_text(rate.low, rate.high),
        "clustered": lambda rate: interval_text(rate.session_low, rate.session_high),
    }
    return page.get_template("experiment.html.jinja").render(
        r=result,
        **page_parts(),
        rows=ROWS,
        parts=[part for step in result.steps for part in step.main],
        headline=HEADLINES[result.exit_code],
        scores=[score_text(score) for score in result.separation.scores],
        chart_wide=Markup(charts.acceptance_chart(answers, width=charts.WIDE)),
        chart_narrow=Markup(charts.acceptance_chart(answers, width=charts.NARROW)),
    )


def _cell(part: PartCounts, key: str) -> str:
    """Return a part's value as the table of steps shows it."""
    value = getattr(part, key)
    if value == "" or (key in OF_ANSWERS and part.numerics == "stamps"):
        return "\u2013"
    return f"{value:,}" if isinstance(value, int) else str(value)


def score_text(score: Score) -> str:
    """Return how well a rule separates, in a sentence."""
    interval = "" if score.low is None or score.high is None else f" (95% interval {score.low:.2f} to {score.high:.2f})"
    seen = "" if score.seen is None else f", {score.seen:.2f} for those that the text shows too"
    return (
        f"{score.rule} rule: AUROC {score.auroc:.2f}{interval}{seen}; at its limits it convicts "
        f"{share_text(score.recall)} of the diverged answers and {share_text(score.false_alarms)} of the clean ones."
    )
