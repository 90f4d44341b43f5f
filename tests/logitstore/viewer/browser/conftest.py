"""A headless Chromium, a page in it, and a store whose pages are served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.servers.serving import serving
from logitstore.viewer.overview import StoreView
from logitstore.viewer.server import ViewerServer
from tests.logitstore.viewer.browser.pages import (
    CHROMIUM,
    Stored,
)

expect.set_options(timeout=30_000)


@pytest.fixture(scope="package")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return Stored(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="package")
def address(stored: Stored) -> Iterator[str]:
    with serving(ViewerServer([StoreView(stored.uri)], 0)) as server:
        yield server.address


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page whose console stays empty and which reaches nothing but this machine."""
    options = getattr(request, "param", {"viewport": {"width": 1280, "height": 800}})
    context = browser.new_context(**options)
    made = context.new_page()
    problems: list[str] = []
    made.on("console", lambda message: problems.append(message.text))
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
    asked: list[str] = []
    made.on("request", lambda request: asked.append(request.url))
    yield made
    context.close()
    assert problems == []
    assert [url for url in asked if outside(url)] == []


def outside(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "file:", "data:", "about:"))
