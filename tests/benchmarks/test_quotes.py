"""Figures in documents are the measured ones: a changed text, a lost figure or an unlinked one is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.report.quotes import DOCUMENTS, LINK, ROOT, quoted, rewrite, wrong_quotes
from benchmarks.report.results import Figure, Result, load_all

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MEASURED = re.compile(
    r"(?<![\w.,^-])\d[\d,.]*(?:e-?\d+)?\s?(?:%|nats?\b|B per|B/|bytes per|tokens/s|rows/s|tokens per second|times\b|x\b"
    r"|minutes|seconds|MB\b|MiB\b|GB\b|TB\b)"
)
NOT_MEASURED = {
    "README.md": {"7 GB": "room that a disk needs"},
    "labeler/README.md": {
        "99.99%": "one run of `penumbra bench agreement`, whose command and date stand beside it"
    },
    "logitstore/README.md": {
        "256 MiB": "a limit in the code",
        "64 MiB": "a size in the code",
        "2.40 nats": "two runs of `penumbra train run`, whose dates stand beside it",
        "3.4 times": "one run over rows of K=64, whose date and size stand beside it",
        "7.3 times": "the same run",
    },
    "logitstore/FORMAT.md": {"0.01 nat": "a rule for writers"},
    "cluster/README.md": {
        "2.84 nats": "one run of `penumbra cluster rounds`, whose command and date stand beside it"
    },
    "benchmarks/README.md": {},
}
"""Figures that no benchmark gives, with the reason why they may stand without a link."""


def results(value: float = 131.46) -> dict[str, Result]:
    figures = (
        Figure.of("bytes_k64", value, "B/token"),
        Figure.of("saved", 0.4234, ""),
        Figure.of("kl", 4.21e-8, "nats"),
    )
    return {"storage": Result.of("storage", meaning="", columns=(), rows=(), figures=figures)}


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("100 B", 131.46, "131 B"),
        ("about 1,000 rows/s", 619_432.0, "about 619,432 rows/s"),
        ("1.0 times", 3.456, "3.5 times"),
        ("10% less", 0.4234, "42% less"),
        ("1.0e-3 nats", 4.21e-8, "4.2e-8 nats"),
        ("12.3%", -0.0456, "4.6%"),
    ],
)
def test_a_number_is_replaced_in_its_own_form(text: str, value: float, expected: str) -> None:
    assert quoted(text, value) == expected


def test_a_figure_changed_by_hand_or_lost_is_found() -> None:
    page = "RESULTS.md#storage.bytes_k64"
    assert wrong_quotes(f"a row takes [131 B]({page})", results()) == []
    assert wrong_quotes(f"a row takes [130 B]({page})", results()) == [
        "storage.bytes_k64 is quoted as '130 B', measured '131 B'"
    ]
    assert "has no figure 'gone'" in wrong_quotes("[1 B](RESULTS.md#storage.gone)", results())[0]
    assert "no result named decode" in wrong_quotes("[1 B](RESULTS.md#decode.x)", results())[0]
    assert "holds no number" in wrong_quotes("[few](RESULTS.md#storage.saved)", results())[0]


def test_new_results_are_written_into_a_document(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(
        "[131 B](RESULTS.md#storage.bytes_k64), [10% less](RESULTS.md#storage.saved) and the rest"
    )
    assert len(rewrite(document, results(value=99.6))) == 2
    assert document.read_text() == (
        "[100 B](RESULTS.md#storage.bytes_k64), [42% less](RESULTS.md#storage.saved) and the rest"
    )
    assert rewrite(document, results(value=99.6)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_quote_the_committed_results(document: Path) -> None:
    text = document.read_text()
    assert wrong_quotes(text, load_all(RESULTS)) == []
    for link in LINK.finditer(text):
        assert (document.parent / link["page"]).resolve() == RESULTS.parent / "RESULTS.md"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_measured_figure_of_a_document_is_linked_to_its_result(document: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
    text = LINK.sub("", text)
    unlinked = [found[0].strip() for found in MEASURED.finditer(text)]
    assert [
        figure for figure in unlinked if figure not in NOT_MEASURED[document.relative_to(ROOT).as_posix()]
    ] == []
