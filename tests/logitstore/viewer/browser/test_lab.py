"""A student beside its teacher, over its snapshots."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from logitstore.rows.temperature import log_tail_mass, logprobs
from logitstore.students.snapshots import FollowedSequence, Snapshots, write_snapshots
from logitstore.viewer.overview import StoreView
from logitstore.viewer.static import static_page
from logitstore.viewer.student_view import StudentView
from tests.logitstore.viewer.browser.pages import (
    MARKS,
    PHONE,
    TOP_K,
    VOCAB,
    WIDER_THAN_THE_WINDOW,
    Stored,
    contrast,
    keep,
    set_temperature,
    shown_values,
)
from tests.logitstore.viewer.viewer_records import (
    full_logits,
    student_rows_of,
)

pytestmark = MARKS


STEPS = (0, 10, 20)


@pytest.fixture(scope="package")
def lab(stored: Stored, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Snapshots]:
    """Address of one file with a student that comes nearer to its teacher in three snapshots, and these."""
    folder = tmp_path_factory.mktemp("student")
    sequence, rng = stored.sequences[0], np.random.default_rng(3)
    rows, labels_N = sequence.rows, sequence.token_ids_T[sequence.label_start :]
    teacher_NV = np.full((rows.num_rows, VOCAB), float(rows.logits_NK.min()) - 1)
    np.put_along_axis(teacher_NV, rows.token_ids_NK, rows.logits_NK, axis=1)
    start_NV = full_logits(rng, rows.num_rows, VOCAB)
    taken = tuple(
        student_rows_of((1 - share) * start_NV + share * teacher_NV, rows, labels_N)
        for share in (0.0, 0.6, 0.95)
    )
    followed = FollowedSequence(stored.uri, sequence.record_id, 0, stored.spec.temperatures, VOCAB, taken)
    snapshots = Snapshots(STEPS, (followed,))
    write_snapshots(snapshots, folder)
    html = static_page([StoreView(stored.uri, student=StudentView(folder))], max_sequences=2, top_k=None)
    (folder / "lab.html").write_text(html, encoding="utf-8")
    return (folder / "lab.html").as_uri(), snapshots


def kl_rows(stored: Stored, snapshots: Snapshots, place: int, temperature: float) -> np.ndarray:
    """By the definition, from what the store and the student's file say."""
    teacher, student = (
        np.concatenate(
            [
                logprobs(rows, stored.spec, temperature),
                log_tail_mass(rows, stored.spec, temperature)[:, None],
            ],
            1,
        ).astype(float)
        for rows in (stored.sequences[0].rows, snapshots.sequences[0].snapshots[place].rows)
    )
    return (np.exp(teacher) * (teacher - student)).sum(axis=1)


def test_a_student_is_shown_beside_its_teacher_over_its_snapshots(
    page: Page, lab: tuple[str, Snapshots], stored: Stored
) -> None:
    address, snapshots = lab
    page.goto(address)
    page.get_by_role("link", name="<b>record 0</b>").click()
    page.wait_for_selector("#heatmap .chosen")
    for temperature in (1.0, 2.75):
        set_temperature(page, temperature)
        np.testing.assert_allclose(shown_values(page), kl_rows(stored, snapshots, 2, temperature), atol=2e-4)
    set_temperature(page, 1.0)
    page.locator("#p7").click()
    row = 7 - stored.sequences[0].label_start
    teacher, student = stored.sequences[0].rows, snapshots.sequences[0].snapshots[2].rows
    page.get_by_role("button", name=f"Show all {TOP_K}").click()
    page.locator("#alpha").fill("0.5")
    actual = int(stored.sequences[0].token_ids_T[7])
    p_K, q_K = (np.exp(logprobs(rows, stored.spec, 1.0)[row].astype(float)) for rows in (teacher, student))
    is_actual_K = teacher.token_ids_NK[row] == actual
    expect(page.locator(".both")).to_have_class(re.compile("targeted"))
    lines = page.eval_on_selector_all(
        ".both tbody tr", "rows => rows.map((row) => [...row.cells].slice(1).map((cell) => cell.textContent))"
    )
    shown = np.array([[read_probability(text) for text in line] for line in lines[:TOP_K]])
    expected = np.stack([p_K, 0.5 * p_K + 0.5 * is_actual_K, q_K], axis=1)
    np.testing.assert_allclose(shown, expected, rtol=0.06, atol=6e-4)
    keep(page, "lab-desk")

    mean = kl_rows(stored, snapshots, 0, 1.0).mean()
    page.locator("#heatmap").focus()
    page.keyboard.press(",")
    expect(page.locator("#step-value")).to_have_text("step 10 of 20")
    page.keyboard.press(",")
    expect(page.locator("#step-value")).to_have_text("before training")
    expect(page.locator("#curve")).to_contain_text(f"KL of the sequence: {mean:.2f} before")
    np.testing.assert_allclose(shown_values(page), kl_rows(stored, snapshots, 0, 1.0), atol=2e-4)
    page.keyboard.press("l")
    expect(page.locator("#play")).to_contain_text("Pause")
    expect(page.locator("#step-value")).to_have_text("step 20 of 20")
    expect(page.locator("#play")).to_contain_text("Play")
    motion = "getComputedStyle(document.querySelector('.both .fill')).transitionDuration"
    assert page.evaluate(motion) == "0.45s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(motion) == "0s"


def read_probability(text: str) -> float:
    return float(text.removesuffix(" %")) / 100 if text.endswith("%") else float(text)


@pytest.mark.parametrize("page", [PHONE | {"color_scheme": "dark"}], indirect=True)
def test_the_lab_fits_on_a_phone(page: Page, lab: tuple[str, Snapshots]) -> None:
    page.goto(f"{lab[0]}#store=0&sequence=0&token=9")
    page.wait_for_selector(".both tbody tr")
    assert page.evaluate(WIDER_THAN_THE_WINDOW) == []
    assert contrast(page, ".both th.student") > 4.4
    assert contrast(page, ".both th.teacher") > 4.4
    keep(page, "lab-phone-dark")
