"""The report as a reader sees it: on a desk and on a phone, in light and dark, in a real Chromium.

Screenshots are left in build/screenshots for people to look at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.demo.report import SEQUENCES_PER_STORE, summarise_store, write_report
from benchmarks.jobs.made_up_labels import empty_store, made_up_sequence
from logitstore.viewer.overview import StoreView
from logitstore.viewer.static import static_page
from tests.benchmarks.demo.test_report import a_report

playwright_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"
ROWS = 40


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over a real store, with its sequences inside."""
    folder = tmp_path_factory.mktemp("report")
    store, rng = empty_store(folder / "store"), np.random.default_rng(0)
    for unit in range(4):
        sequences = [made_up_sequence(f"<b>record {unit}-{i}</b>", ROWS, rng) for i in range(3)]
        store.commit_unit(f"unit-{unit}", unit, sequences, seconds=0.01, worker=f"worker {unit % 2}")
    report = a_report(stores=(summarise_store(store.uri),))
    view = StoreView(store.uri, None, None)
    page = static_page([view], max_sequences=SEQUENCES_PER_STORE, top_k=8, start="store=0&sequence=0")
    write_report(report, page, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("desk", 1200, "light"), ("desk", 1200, "dark"), ("phone", 360, "dark")]
)
def test_the_report_fits_and_shows_its_charts_and_tokens(
    browser: Any, report_path: Path, name: str, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report_path.as_uri())
    frame = page.frames[1]
    frame.wait_for_selector("#sequence:not([hidden])", timeout=60_000)
    tokens = frame.locator("#sequence").inner_text()
    page.locator("iframe").scroll_into_view_if_needed()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-tokens-{name}-{scheme}.png")
    page.screenshot(path=SCREENSHOTS / f"report-{name}-{scheme}.png", full_page=True)

    assert problems == []
    outside = [url for url in requests if not url.startswith(("file:", "data:", "about:"))]
    assert outside == []
    assert "<b>record 0-0</b>" in tokens
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg.chart").count() == 5
    assert page.locator("svg.chart polyline").count() == 6  # two students, the loss, the mass, two workers
    for chart in page.locator("svg.chart").all():
        box = chart.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 150
    dark_back = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark_back is (scheme == "dark")
    page.close()
