"""A store to look at, and what the tests do with its page.

Screenshots are left in build/screenshots for people to look at."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore
from tests.logitstore.decoding.test_tokens import byte_level_tokenizer
from tests.logitstore.viewer.viewer_records import (
    manifest_of,
    sequence_of,
)

CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
MARKS = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]

VOCAB, TOP_K = 257, 32
TEXTS = (
    "The quick brown fox jumps over the lazy dog.\n\tAnd again.",
    "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">&lt;b&gt;",
    "naïve 你好，世界 🙂 한국어 עברית العربية",
)
SCREENSHOTS = Path(__file__).parents[4] / "build" / "screenshots"


class Stored:
    """A store with one sequence of each text and a long one, and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = byte_level_tokenizer()
        (folder / "teacher").mkdir()
        self.tokenizer.save(str(folder / "teacher" / "tokenizer.json"))
        self.uri = str(folder / "store")
        fingerprint = tokenizer_fingerprint(self.tokenizer.get_vocab())
        manifest = manifest_of(VOCAB, TOP_K, model=str(folder / "teacher"), fingerprint=fingerprint)
        self.store = LogitStore.create(self.uri, manifest)
        self.spec = manifest.labels
        sequences = [self.sequence(f"<b>record {i}</b>", text) for i, text in enumerate(TEXTS)]
        self.store.commit_unit("u0", 0, sequences, seconds=1.0, worker="test")
        self.store.commit_unit(
            "u1", 1, [self.sequence("long", "A long text. " * 700, 8192)], seconds=1.0, worker="test"
        )
        self.sequences = list(self.store.iter_sequences())

    def sequence(self, record_id: str, text: str, num_tokens: int | None = None) -> LabeledSequence:
        rng = np.random.default_rng(len(text))
        ids = self.tokenizer.encode(text).ids[:num_tokens]
        return sequence_of(record_id, ids, rng, vocab_size=VOCAB, top_k=TOP_K, prompt=3)


def open_sequence(page: Page, address: str, index: int) -> None:
    page.goto(f"{address}#store=0&sequence={index}")
    page.wait_for_selector("#heatmap .chosen")


def shown_values(page: Page) -> list[float]:
    cells = page.eval_on_selector_all(
        "#heatmap [data-value]", "cells => cells.map((cell) => cell.dataset.value)"
    )
    return [float(value) for value in cells]


def set_temperature(page: Page, temperature: float) -> None:
    page.eval_on_selector(
        "#temperature",
        f"slider => {{ slider.value = '{temperature}'; slider.dispatchEvent(new Event('input')); }}",
    )
    expect(page.locator("#temperature-value")).to_contain_text(f"{temperature:.2f} (")


def keep(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SCREENSHOTS / f"{name}.png"))


WIDER_THAN_THE_WINDOW = """() => {
  const page = document.scrollingElement;
  if (page.scrollWidth <= page.clientWidth) return [];
  return [...document.querySelectorAll('body *')].filter((node) => node.getBoundingClientRect().right > page.clientWidth)
    .map((node) => `${node.tagName} ${node.className} ${node.id} ${node.textContent.slice(0, 30)}`);
}"""
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True}


def contrast(page: Page, selector: str) -> float:
    """WCAG contrast of the first element's text against what is painted behind it."""
    colours = page.evaluate(
        """(selector) => { const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const paint = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); };
        let node = document.querySelector(selector); const text = getComputedStyle(node).color; const stack = [];
        for (; node; node = node.parentElement) stack.unshift(getComputedStyle(node).backgroundColor);
        canvas.clearRect(0, 0, 1, 1); stack.forEach(paint); const behind = [...canvas.getImageData(0, 0, 1, 1).data];
        paint(text); return [behind, [...canvas.getImageData(0, 0, 1, 1).data]]; }""",
        selector,
    )
    linear = np.array(colours, float)[:, :3] / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    bright = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (bright[1] + 0.05) / (bright[0] + 0.05)
