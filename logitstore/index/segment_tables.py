"""What the segments of an index say: entries and rejects, without those of dropped attempts."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from logitstore.index import segments as index_segments
from logitstore.index.commits import CommitRecord
from logitstore.index.loading import load_entries, load_rejects
from logitstore.index.pointer import IndexPointer, SegmentInfo
from logitstore.objects.opening import Objects
from logitstore.records import Reject


class SegmentTables:
    """The segments that one `index.json` names, each read once."""

    def __init__(self, objects: Objects, pointer: IndexPointer, tables: dict[str, pa.Table]) -> None:
        """`tables` are the entries of each segment as they lie there."""
        self.pointer = pointer
        self._objects, self._tables = objects, tables

    def of_pointer(self, pointer: IndexPointer) -> SegmentTables:
        """Those of another `index.json`; what both name is not read again. Raises ObjectNotFoundError."""
        known = self._tables
        tables = {
            info.name: known[info.name] if info.name in known else load_entries(self._objects, info)
            for info in pointer.segments
        }
        return SegmentTables(self._objects, pointer, tables)

    def raw(self, name: str) -> pa.Table:
        """The entries of a segment as they lie there, those of dropped attempts included."""
        return self._tables[name]

    def living(self, name: str) -> pa.Table:
        """The entries of a segment that count: those of dropped attempts do not."""
        table = self._tables[name]
        if not self.pointer.dropped:
            return table
        dropped = pa.array([bytes.fromhex(one.attempt) for one in self.pointer.dropped], pa.binary(8))
        options = pc.SetLookupOptions(dropped)
        is_dropped = pc.call_function("is_in", [table.column("attempt")], options)
        return table.filter(pc.call_function("invert", [is_dropped]))

    def all_living(self) -> list[pa.Table]:
        """The entries that count, by segment."""
        return [self.living(name) for name in self._tables]

    def load_rejects(self, info: SegmentInfo) -> pa.Table:
        """The rejects of a segment that has some, of units that count."""
        rejects = load_rejects(self._objects, info)
        if not self.pointer.dropped:
            return rejects
        living = self.living(info.name).column("unit_index").combine_chunks()
        return rejects.filter(
            pc.call_function("is_in", [rejects.column("unit_index")], pc.SetLookupOptions(living))
        )

    def rejects(self) -> list[Reject]:
        """Rejects of all units, by segment."""
        found: list[Reject] = []
        for info in self.pointer.segments:
            if info.rejects_name:
                found += index_segments.table_to_rejects(self.load_rejects(info))
        return found

    def records(self) -> list[CommitRecord]:
        """All that the index has, as the records they were: deleted sequences are counted."""
        found: list[CommitRecord] = []
        for info in self.pointer.segments:
            rejects: dict[int, list[Reject]] = {}
            if info.rejects_name:
                table = self.load_rejects(info)
                numbers = table.column("unit_index").to_pylist()
                for number, reject in zip(numbers, index_segments.table_to_rejects(table), strict=True):
                    rejects.setdefault(number, []).append(reject)
            table = self.living(info.name)
            attempts = table.column("attempt").to_pylist()
            for attempt, entry in zip(attempts, index_segments.table_to_entries(table), strict=True):
                lost = tuple(rejects.get(entry.unit_index, ()))
                found.append(CommitRecord(attempt.hex(), self.pointer.manifest, entry, lost))
        return found
