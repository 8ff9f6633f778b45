"""The README's picture is taken from a report: it shows the finding, and no token."""

from pathlib import Path
from typing import Any

from reports.run.html import write_report
from tests.builders import make_run, race_finding
from tests.reports.picture import PICTURE_BYTES_MAX, picture


def test_picture_opens_the_first_finding_and_hides_what_changes_with_the_code(browser: Any, tmp_path: Path) -> None:
    taken = picture(browser, write_report(make_run(tmp_path, findings=[race_finding()])))
    assert taken.startswith(b"\x89PNG") and len(taken) <= PICTURE_BYTES_MAX
    seen = browser.execute_script("return document.body.innerText")
    assert "Missing edge" in seen and "repro reproduce" not in seen
