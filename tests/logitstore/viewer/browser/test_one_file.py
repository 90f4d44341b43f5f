"""The page as one file, without a server, also in the frame of another page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from logitstore.rows.entropy import entropy
from logitstore.store import LogitStore
from logitstore.viewer.overview import StoreView
from logitstore.viewer.static import static_page
from tests.logitstore.viewer.browser.pages import (
    MARKS,
    TOP_K,
    VOCAB,
    WIDER_THAN_THE_WINDOW,
    Stored,
    keep,
    shown_values,
)
from tests.logitstore.viewer.viewer_records import (
    sequence_of,
)

pytestmark = MARKS

IS_CHOSEN_IN_VIEW = """() => {
    const place = document.getElementById("heatmap").getBoundingClientRect();
    const token = document.querySelector(".chosen").getBoundingClientRect();
    return token.height > 0 && token.top >= place.top && token.bottom <= place.bottom;
}"""


def test_one_file_works_without_server_and_in_a_narrow_frame(
    page: Page, stored: Stored, tmp_path: Path
) -> None:
    html = static_page([StoreView(stored.uri)], max_sequences=2, top_k=8, start="store=0&sequence=0")
    (tmp_path / "labels.html").write_text(html, encoding="utf-8")
    page.goto((tmp_path / "labels.html").as_uri())
    page.wait_for_selector("#heatmap .chosen")
    # Cutting to 8 entries moves mass to the tail, but the entropy stays near the one of all entries.
    full = entropy(stored.sequences[0].rows, stored.spec, 1.0)
    assert np.abs(np.array(shown_values(page)) - full).mean() < 0.2
    page.get_by_role("link", name="Overview").click()
    page.wait_for_selector(".card")
    page.goto(f"{(tmp_path / 'labels.html').as_uri()}#store=0&sequence=3")
    expect(page.locator("#notice")).to_contain_text("which holds 2 of 4")
    assert page.locator("main section:visible").count() == 0, "another sequence is left under this address"

    frame_file = tmp_path / "report.html"
    source = html.replace("&", "&amp;").replace('"', "&quot;")
    frame_file.write_text(
        f'<meta charset="utf-8"><iframe sandbox="allow-scripts" width="345" height="600" srcdoc="{source}"></iframe>',
        encoding="utf-8",
    )
    page.goto(frame_file.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("#heatmap .chosen").wait_for()
    frame.locator("#p9").click()
    assert "position 9" in frame.locator("#detail").inner_text()
    frame.get_by_role("button", name="Next").click()
    frame.get_by_text("record 1").first.wait_for()
    inner = page.frames[1]
    assert inner.evaluate(WIDER_THAN_THE_WINDOW) == []
    keep(page, "frame")


def test_one_file_searches_all_of_a_sequences_text(page: Page, stored: Stored, tmp_path: Path) -> None:
    """Not only what the list shows of it; what a file cannot do is said."""
    texts = ["filler " * 60 + f"Needle{number} in the end" for number in range(4)]
    store = LogitStore.create(str(tmp_path / "store"), replace(stored.store.manifest, codebooks=None))
    rng = np.random.default_rng(0)
    sequences = [
        sequence_of(
            f"far-{i}", stored.tokenizer.encode(text).ids, rng, vocab_size=VOCAB, top_k=TOP_K, prompt=4
        )
        for i, text in enumerate(texts)
    ]
    store.commit_unit("u", 0, sequences, seconds=1, worker="w")
    html = static_page([StoreView(store.uri)], max_sequences=3, top_k=4)
    (tmp_path / "labels.html").write_text(html, encoding="utf-8")
    address = (tmp_path / "labels.html").as_uri()
    page.goto(f"{address}#store=0&page=0")
    expect(page.locator("#range")).to_have_text("1 to 3 of 3")
    expect(page.locator("#cut")).to_contain_text("This file holds 3 of the store's 4 sequences.")
    assert "Needle" not in page.locator(".sequences").inner_text()
    page.locator("#text").fill("needle1 IN")
    page.locator("#text").press("Enter")
    expect(page.locator("#range")).to_have_text("1 to 1 of 1")
    expect(page.locator(".sequences tbody a")).to_have_text("far-1")
    keep(page, "file-found")
    page.goto(f"{address}#store=0&page=0&where=num_tokens+%3E+3&order=entropy")
    expect(page.locator("#notice")).to_contain_text("does not know conditions and an order by entropy")
    assert page.locator("main section:visible").count() == 0, "a list that answers another question"
    page.goto(f"{address}#store=0&sequence=0")
    page.wait_for_selector("#heatmap .chosen")
    page.goto(f"{address}#store=0&record=nobody")
    expect(page.locator("#notice")).to_contain_text("Record nobody is not in this file")
    assert page.locator("main section:visible").count() == 0, "another sequence is left under this address"


# A frame gets its size when the page around it is laid out, which may be after its content was drawn.
@pytest.mark.parametrize("drawn_at", ["width: 900px", "width: 300px", "width: 0", "display: none"])
def test_a_page_around_the_frame_stays_where_it_is(
    page: Page, stored: Stored, tmp_path: Path, drawn_at: str
) -> None:
    html = static_page(
        [StoreView(stored.uri)], max_sequences=4, top_k=1, start="store=0&sequence=3&token=6000"
    )
    source = html.replace("&", "&amp;").replace('"', "&quot;")
    report = tmp_path / "report.html"
    report.write_text(
        '<meta charset="utf-8"><p style="height: 3000px">Plots</p>'
        f'<iframe sandbox="allow-scripts" style="{drawn_at}" height="600" srcdoc="{source}"></iframe>',
        encoding="utf-8",
    )
    page.goto(report.as_uri())
    page.frame_locator("iframe").locator("#p6000.chosen").wait_for(state="attached")
    page.evaluate("document.querySelector('iframe').style = 'width: 900px'")
    assert page.evaluate("scrollY") == 0
    # Chromium draws a sandboxed frame, and tells it its size, only where it is in view: no animation frame comes
    # before that, and by those playwright waits.
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    reached = page.evaluate("scrollY")
    page.frames[1].wait_for_function(IS_CHOSEN_IN_VIEW)
    assert page.evaluate("scrollY") == reached > 0
