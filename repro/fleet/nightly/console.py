"""A night, and the comparison of two, as text in a terminal."""

from rich.console import Console
from rich.table import Table

from reports.night.night import Comparison, Night
from reports.night.page import ANSWERS
from reports.rates import interval_text, share_text
from repro.fleet.nightly.compare import power_text


def print_night(night: Night, console: Console) -> None:
    """Print what a night came to: its reasons, cases, gates and findings, and the way to its page."""
    _say(console, f"{night.verdict.upper()}  nightly {night.suite}, exit {night.exit_code}")
    for why in night.why:
        _say(console, f"  {why}")
    table = Table("case", "ok", "came to", "wrong requests (95 %)")
    for row in night.cases:
        rate = f"{share_text(row.rate.share)} ({interval_text(row.rate.session_low, row.rate.session_high)})"
        table.add_row(row.name, ANSWERS[row.met], row.told, f"{row.rate.count:,} of {row.rate.of:,}: {rate}")
    console.print(table)
    for gate in night.gates:
        _say(console, f"gate {gate.name}: {gate.value}; {gate.limit}: {ANSWERS[gate.met]}")
    for finding in night.findings:
        _say(console, f"{'new  ' if finding.new else ''}{finding.runs} runs  {finding.signature}")
        _say(console, f"  {finding.replay}")
    if night.comparison is not None:
        print_comparison(night.comparison, console)
    _say(console, night.scaling)
    gone = f"{night.pruned.runs} clean or vacuous runs, {night.pruned.logs} event logs"
    _say(console, f"taken off the disk: {gone}, {night.pruned.bytes / 1e6:,.0f} MB")
    _say(console, f"page: {night.folder}/index.html")


def print_comparison(compared: Comparison, console: Console) -> None:
    """Print how two sides compare: the answer, their rates, the effect, and which causes are new or gone."""
    _say(console, f"{compared.answer.upper()}  {compared.told}")
    for name, rate in ((compared.before, compared.before_rate), (compared.after, compared.after_rate)):
        interval = interval_text(rate.session_low, rate.session_high)
        _say(
            console,
            f"  {name}: {rate.count:,} of {rate.of:,} requests wrong, {share_text(rate.share)} ({interval}); "
            f"{rate.sessions_hit:,} of {rate.sessions:,} sessions hit",
        )
    _say(
        console,
        f"  effect {compared.effect:+.4%} (95 % {compared.effect_low:+.4%} to {compared.effect_high:+.4%}); "
        f"{compared.test}'s exact test over sessions: p = {compared.p_value:.3g}",
    )
    _say(console, f"  {power_text(compared)}")
    for words, signatures in (("new", compared.new_signatures), ("gone", compared.gone_signatures)):
        for signature in signatures:
            _say(console, f"  {words}: {signature}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
