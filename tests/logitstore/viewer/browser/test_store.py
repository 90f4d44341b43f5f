"""A store as a whole: its overview on a phone, a job that goes on, and a search through a large one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from benchmarks.servers.serving import serving
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.viewer.overview import StoreView
from logitstore.viewer.server import ViewerServer
from tests.logitstore.viewer.browser.pages import (
    MARKS,
    PHONE,
    WIDER_THAN_THE_WINDOW,
    Stored,
    contrast,
    keep,
)
from tests.logitstore.viewer.viewer_records import (
    fill_large_store,
)

pytestmark = MARKS


@pytest.mark.parametrize(
    "page", [PHONE | {"color_scheme": scheme} for scheme in ("light", "dark")], indirect=True
)
def test_a_phone_shows_it_without_sideways_scrolling(page: Page, address: str) -> None:
    scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    for name, fragment, selector in (
        ("overview", "", ".card"),
        ("list", "#store=0&page=0", ".sequences"),
        ("sequence", "#store=0&sequence=2", "#heatmap .chosen"),
    ):
        page.goto(f"{address}{fragment}")
        page.wait_for_selector(selector)
        assert page.evaluate(WIDER_THAN_THE_WINDOW) == [], name
        keep(page, f"phone-{scheme}-{name}")
    tops = page.eval_on_selector_all("#detail .figures > div", "all => all.map((one) => one.offsetTop)")
    assert (len(tops), len(set(tops))) == (5, 1), "the token's figures take more than a line"
    assert contrast(page, "body") > 7
    assert contrast(page, "#detail .quiet") > 4.4
    page.eval_on_selector("#p5", "cell => { cell.className = 't h24'; }")  # the strongest colour
    assert contrast(page, "#p5") > 4.4


def test_a_job_is_watched_to_its_end_without_reloading(page: Page, stored: Stored, tmp_path: Path) -> None:
    uri = tmp_path / "running"
    with serving(ViewerServer([StoreView(str(uri))], 0)) as server:
        page.goto(server.address)
        page.get_by_text("no store lies at").wait_for()
        store = LogitStore.create(str(uri), stored.store.manifest)

        def say(state: str, done: int) -> None:
            beat = {"state": state, "units_done": done, "units_total": 2, "workers": [{"name": "w0"}]}
            beat["updated"] = datetime.now(UTC).isoformat()
            store.objects.put("status.json", json.dumps(beat).encode())

        store.commit_unit("u0", 0, stored.sequences[:1], seconds=1.0, worker="test")
        say("running", 1)
        page.get_by_text("1 of 2 units").wait_for()
        page.get_by_text("Workers: 1").click()
        rejects = [Reject("in.jsonl", line, None, "why", "too_long") for line in range(1, 121)]
        store.commit_unit("u1", 1, stored.sequences[1:3], rejects, seconds=1.0, worker="test")
        say("finished", 2)
        page.get_by_text("2 of 2 units").wait_for()
        # The counts may be from just before the status; the next look has both.
        expect(page.locator(".card")).to_contain_text(re.compile(r"sequences\s+3\b"), use_inner_text=True)
        assert page.locator(".badge").inner_text() == "finished"
        assert page.locator("details[open]").count() == 1, "a refresh closed what was open"
        page.get_by_text("rejected records").last.click()
        page.get_by_text("too_long: 120; the first 100 are shown").wait_for()
        keep(page, "watched")
        page.goto("about:blank")  # so that it does not miss the server


def test_the_end_of_a_list_grows_with_its_store(page: Page, stored: Stored, tmp_path: Path) -> None:
    """It showed the sequences that were there when it was opened, until the page was loaded anew."""
    store = LogitStore.create(str(tmp_path / "growing"), stored.store.manifest)
    store.commit_unit("u0", 0, stored.sequences[:1], seconds=1.0, worker="test")
    with serving(ViewerServer([StoreView(store.uri)], 0)) as server:
        page.goto(f"{server.address}#store=0&page=0")
        page.get_by_text("1 to 1 of 1").wait_for()
        page.locator("#jump").fill("1")
        page.locator("h2").first.click()
        table = page.locator("table.sequences").element_handle()
        store.commit_unit("u1", 1, stored.sequences[1:3], seconds=1.0, worker="test")
        page.get_by_text("1 to 3 of 3").wait_for()
        assert page.locator("table.sequences tbody tr").count() == 3
        assert not table.evaluate("one => one.isConnected")
        shown = page.locator("table.sequences").element_handle()
        with page.expect_response(re.compile("/sequences")) as answered:
            pass
        answered.value.finished()
        assert shown.evaluate("one => one.isConnected"), "what is as it was is not drawn anew"
        page.goto("about:blank")


def test_a_large_store_is_searched_sorted_and_linked_to(page: Page, tmp_path: Path, stored: Stored) -> None:
    store = LogitStore.create(str(tmp_path / "store"), replace(stored.store.manifest, codebooks=None))
    fill_large_store(store, 12, 50, stored.tokenizer.encode("abcdefghijklm ").ids)
    with serving(ViewerServer([StoreView(store.uri)], 0)) as server:
        page.goto(f"{server.address}#store=0&page=0")
        expect(page.locator("#range")).to_have_text("1 to 50 of 600")
        page.goto(f"{server.address}#store=0&page=99")  # of a link, from before others were deleted
        expect(page.locator("#list .quiet").last).to_have_text(
            "The list ends at page 12; the address asks for page 100."
        )
        page.get_by_label("Previous").click()
        expect(page.locator("#range")).to_have_text("551 to 600 of 600")
        page.get_by_label("First").click()
        expect(page.locator("#range")).to_have_text("1 to 50 of 600")
        page.keyboard.press("Tab")
        page.locator("#where").fill("flags has truncated")
        page.locator("#where").press("Enter")
        expect(page.locator("#range")).to_have_text("1 to 50 of 60")
        page.locator("#order").select_option("longest first")
        expect(page.locator(".sequences tbody tr td:nth-child(3)").first).to_have_text("30")
        page.locator("#text").fill("11-4")
        page.locator("#text").press("Enter")
        expect(page.locator("#range")).to_have_text("1 to 1 of 1")
        keep(page, "list-found")
        page.get_by_role("link", name="11-40").click()
        page.wait_for_selector("#heatmap .chosen")
        page.keyboard.press("ArrowRight")
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#copy").click()
        expect(page.locator("#copy")).to_have_text("Copied")
        link = page.evaluate("navigator.clipboard.readText()")
        assert link == f"{server.address}#store=0&record=11-40&token=5"
        page.keyboard.press("Escape")
        expect(page.locator("#range")).to_have_text("1 to 1 of 1")
        page.goto("about:blank")
        page.goto(link)
        page.wait_for_selector("#p5.chosen")
        assert page.locator("#sequence h2").inner_text() == "11-40"
        page.goto("about:blank")
