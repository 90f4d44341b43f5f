"""The id indexes of a whole store: do they say what the shards say, and making those that are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from logitstore.errors import ObjectStoreError, StoreError
from logitstore.index.ids.id_index import IdIndex, ids_name
from logitstore.store import LogitStore
from logitstore.tools.findings import Findings

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class IdsMade:
    """What `make_missing_ids` did."""

    num_made: int
    """Segments that have an id index now and had none."""
    reasons: tuple[str, ...]
    """Why others have none still."""


def make_missing_ids(store: LogitStore, progress: Progress | None = None) -> IdsMade:
    """Give segments of earlier versions, and those of an interrupted compaction, their id index.

    Reads the ids of their shards. Raises CorruptManifestError for a damaged id index.
    """
    builder = store.id_builder()
    segments = store.index_segments()
    reasons: list[str] = []
    num_made = 0
    for done, (info, table) in enumerate(segments):
        if progress:
            progress("segments", done, len(segments))
        if IdIndex.open(store.objects, info) is None:
            reason = builder.build(info, table)
            reasons += [reason] if reason else []
            num_made += not reason
    return IdsMade(num_made, tuple(reasons))


def check_ids(store: LogitStore, findings: Findings) -> None:
    """Compare each id index with the ids that `verify` read of the shards."""
    labeled = findings.labeled
    read = {
        int(units[0]): ids for units, ids in zip(labeled.units, labeled.digests, strict=True) if len(units)
    }
    for info, table in store.index_segments():
        name = ids_name(info.name)
        try:
            index = IdIndex.open(store.objects, info)
            wrong = None if index is None else _wrong_unit(store, index, table, read)
        except ObjectStoreError:
            raise
        except StoreError as error:
            findings.error("corrupt_ids", name, " ".join(str(error).split()))
            continue
        if wrong is not None:
            findings.error(
                "wrong_ids",
                name,
                f"names other record ids of unit {wrong} than its shard has; remove it, and `penumbra store "
                "compact` makes it anew",
            )


def _wrong_unit(
    store: LogitStore, index: IdIndex, table: pa.Table, read: dict[int, np.ndarray]
) -> str | None:
    """A unit of which the index says other ids than were read; None if there is none."""
    entries = index.all()
    entries = entries[np.lexsort((entries["place"], entries["row"]))]
    bounds = np.searchsorted(entries["row"], np.arange(table.num_rows + 1))
    if bounds[-1] != len(entries):
        return "beyond the segment's last"
    dropped = store.dropped_attempts()
    columns = (table.column(name).to_pylist() for name in ("unit_index", "unit_id", "attempt"))
    for row, (unit_index, unit_id, attempt) in enumerate(zip(*columns, strict=True)):
        if unit_index not in read or attempt.hex() in dropped:
            continue
        here = entries[bounds[row] : bounds[row + 1]]
        here = here[~np.isin(here["place"], store.deletions.places(attempt.hex()))]
        digests = read[unit_index].view(np.uint8).reshape(-1, 16)[:, :8]
        if not np.array_equal(here["hash"], np.ascontiguousarray(digests).view(">u8")[:, 0]):
            return unit_id
    return None
