"""Takes the README's picture of a report: python -m tests.reports.picture runs/SCENARIO/UTC-SEED [--out FILE].

It shows the verdict, the funnel and the first finding, opened, down to its timeline. The token is left out, for it
changes with the code. Needs chromium and its driver.
"""

import argparse
import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from tests.reports.browser import start_browser, use

WIDTH = 960
MARGIN = 24
PICTURE_BYTES_MAX = 150_000
COLORS = 64
HIDDEN = (
    *("header > p:not(.kicker, .lead)", ".replay", ".facts", ".causes", "th small", ".note", "button", "#findings"),
    "details.finding:not(:first-of-type)",
)
SHOW = """
    const [hidden] = arguments;
    for (const each of document.querySelectorAll(hidden)) each.style.display = "none";
    document.body.style.paddingTop = "1.5rem";
    const finding = document.querySelector("details.finding");
    finding.open = true;
    return finding.querySelector(".scroll svg").getBoundingClientRect().bottom;
"""


def picture(browser: Any, report: Path) -> bytes:
    """Return the picture of a report as PNG."""
    use(browser, width=WIDTH, scheme="light")
    browser.get(report.resolve().as_uri())
    bottom = browser.execute_script(SHOW, ", ".join(HIDDEN))
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": bottom + MARGIN, "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    image = Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")
    small = io.BytesIO()
    image.quantize(COLORS, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--out", type=Path, default=Path("reports/example.png"))
    given = parser.parse_args()
    browser = start_browser()
    try:
        taken = picture(browser, given.run / "report.html")
    finally:
        browser.quit()
    if len(taken) > PICTURE_BYTES_MAX:
        raise SystemExit(f"the picture has {len(taken):,} bytes, the README allows {PICTURE_BYTES_MAX:,}")
    given.out.write_bytes(taken)
    print(f"{given.out}: {len(taken):,} bytes")


if __name__ == "__main__":
    main()
