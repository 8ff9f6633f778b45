"""One browser for the tests of a file; without Chromium they are skipped."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.reports.browser import CHROMIUM, DRIVER, start_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver here (apt-get install chromium chromium-driver)")
    pytest.importorskip("selenium.webdriver")
    driver = start_browser()
    yield driver
    driver.quit()
