"""How much of the teacher's mass the first K entries of a row leave out, against K."""

from __future__ import annotations

from collections.abc import Sequence

from logitstore.store import LogitStore
from logitstore.tools.inspection import inspect_store

MAX_ROWS = 50_000
"""Rows of a store that are looked at; the average over these is sure to far less than a percent."""


def outside_by_k(uris: Sequence[str]) -> dict[str, float]:
    """The teacher's mass outside the K likeliest tokens at temperature 1, averaged over the stores' rows.

    For K of 1, 2, 4 and so on up to the stored number of entries, by K as text (the ledger is JSON). A store
    says nothing of a K beyond its own, so such a K is averaged over the rows of the wider stores alone.
    """
    outside: dict[int, float] = {}
    num_rows: dict[int, int] = {}
    for uri in uris:
        found = inspect_store(LogitStore.open(uri), max_rows=MAX_ROWS)
        for one in found.mass_by_k if found.num_inspected_rows else ():
            share = (1 - one.mass["1"]) * found.num_rows
            outside[one.top_k] = outside.get(one.top_k, 0.0) + share
            num_rows[one.top_k] = num_rows.get(one.top_k, 0) + found.num_rows
    return {str(k): outside[k] / num_rows[k] for k in sorted(outside)}
