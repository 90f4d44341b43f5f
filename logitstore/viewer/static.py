"""The page as one file that needs no server and no network, for a report or a mail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logitstore.common.whole_file import check_replaceable, write_whole
from logitstore.rows.selection import Selection
from logitstore.viewer.overview import StoreView
from logitstore.viewer.page import build_page
from logitstore.viewer.payload import rejects_payload, sequence_payload, summary_payload
from logitstore.viewer.student_view import StudentView

MAX_REJECTS = 1000


def write_static_page(
    stores: str | Sequence[str],
    path: str | Path,
    *,
    max_sequences: int = 20,
    top_k: int | None = 32,
    tokenizer: str | None = None,
    storage_options: dict[str, object] | None = None,
    selection: Selection | None = None,
    student: StudentView | None = None,
) -> int:
    """Write the page with the first sequences of each store inside; returns the file's size in bytes.

    Those that a student was followed on are held as well.

    Args:
        stores: one store's URI or several.
        path: the HTML file, replaced as a whole.
        max_sequences: sequences of each store to hold.
        top_k: entries of each row to hold, with the tail enlarged by the others; None for all.
        tokenizer: folder or `tokenizer.json` for the tokens' text; the job's own by default, else bare ids.
        storage_options: how to reach the stores' object store.
        selection: which sequences to show; None for all.
        student: whose predictions to show beside the teacher's.

    Raises:
        StoreError: a store is missing or cannot be read.
        FileNotFoundError: no tokenizer at the given path.
    """
    check_replaceable(Path(path))
    uris = [stores] if isinstance(stores, str) else list(stores)
    asked = selection or Selection()
    # Each its own, which knows what its store lacks.
    chosen = [Selection(asked.conditions, asked.texts) for _ in uris]
    views = [
        StoreView(uri, tokenizer, storage_options, own, student)
        for uri, own in zip(uris, chosen, strict=True)
    ]
    html = static_page(views, max_sequences=max_sequences, top_k=top_k)
    write_whole(Path(path), html)
    return len(html.encode())


def static_page(
    views: Sequence[StoreView], *, max_sequences: int, top_k: int | None, start: str | None = None
) -> str:
    """The HTML text of a page that holds its own data.

    `start` says where it opens when its address has no fragment, for example "store=0&sequence=0".
    """
    summaries, sequences, rejects = [], [], []
    for view in views:
        store, pages = view.open()
        spec = store.manifest.labels
        numbers = sorted({*range(min(max_sequences, pages.total)), *view.followed()})
        found = [(number, *pages.read(number, 1, top_k=top_k)) for number in numbers]
        lines = zip(numbers, pages.lines(numbers), strict=True)
        summaries.append([summary_payload(i, line, view.conversations) for i, line in lines])
        sequences.append([sequence_payload(i, one, spec, view.texts, view.student) for i, one in found])
        rejects.append(rejects_payload(store.rejects(), 0, MAX_REJECTS))
        pages.close()
    data: dict[str, object] = {
        "mode": "static",
        "start": start,
        "overview": {"jobs": [], "stores": [view.describe() for view in views]},
        "summaries": summaries,
        "sequences": sequences,
        "rejects": rejects,
    }
    return build_page(data, title="Penumbra: " + ", ".join(view.uri for view in views), connect=False).html
