"""`verify --against INPUT`: every input record exactly once in shards or rejects, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from logitstore.index.deletions import DeletedRecords
from logitstore.inputs.identity import digest_of, repeated_id
from logitstore.inputs.parts import id_of, part_number, parts_of
from logitstore.inputs.proofs import PlannedProofs, proof_of
from logitstore.inputs.raw_record import RawRecord
from logitstore.manifest.fields import InputInfo
from logitstore.records import Reject
from logitstore.tools.findings import Findings, Progress

BATCH_RECORDS = 4096


class InputCheck:
    """Compares labeled ids and rejects with the records of the input, in batches."""

    def __init__(
        self,
        findings: Findings,
        rejects: Iterable[Reject],
        info: InputInfo,
        proofs: PlannedProofs | None,
        deleted: frozenset[str] = frozenset(),
    ) -> None:
        """`deleted` are digests of records that were taken down, as `Deletions.records` has them."""
        self._deleted = deleted
        self.num_deleted = 0
        """Records of the input that were taken down, and so are missed by nobody."""
        self._findings = findings
        self._proofs = proofs
        self.num_unproven = 0
        """Labeled records whose content cannot be compared, since the store keeps no digest of it."""
        self._info = info
        parts = findings.labeled.digests
        self._labeled = np.unique(np.concatenate(parts)) if parts else np.empty(0, "V16")
        self._seen = np.zeros(len(self._labeled), bool)
        self._rejected: dict[tuple[str, int, int], bool] = {
            (reject.file, reject.line, self._part_of(reject)): False for reject in rejects
        }
        """By file, line and part: 0 is a record without parts, and one whose id is not known."""
        self._repeats: dict[str, int] = {}
        self.num_records = 0

    def run(self, records: Iterator[RawRecord], progress: Progress | None = None) -> None:
        """Read the input and note every problem in the findings."""
        if self._info.limit is not None:
            records = islice(records, self._info.limit)
        records = parts_of(records, self._info)
        while batch := list(islice(records, BATCH_RECORDS)):
            self._check_batch(batch)
            self.num_records += len(batch)
            if progress:
                progress("input", self.num_records, self._info.limit or self.num_records)
        self._check_rest()

    def _check_batch(self, batch: list[RawRecord]) -> None:
        named: list[tuple[RawRecord, str]] = []
        for raw in batch:
            if self._is_rejected(raw):
                continue
            identifier = self._identify(raw)
            if identifier is not None:
                named.append((raw, identifier))
        if not named:
            return
        digests = np.frombuffer(b"".join(digest_of(identifier) for _, identifier in named), "V16")
        places = np.searchsorted(self._labeled, digests)
        labeled: list[tuple[RawRecord, str, bytes]] = []
        for (raw, identifier), digest, place in zip(named, digests, places, strict=True):
            where, who = f"{raw.file}:{raw.line}", f"record {identifier!r:.120}"
            if self._is_deleted(identifier):
                self.num_deleted += 1
                continue
            if place == len(self._labeled) or self._labeled[place] != digest:
                self._error("not_labeled", where, f"{who} is neither labeled nor rejected")
            elif self._seen[place] and not self._is_labeled_repeat(identifier):
                self._error("id_repeated", where, f"{who} occurs again and is not among the rejects")
            else:
                self._seen[place] = True
                labeled.append((raw, identifier, digest.tobytes()))
        self._compare_contents(labeled)

    def _is_deleted(self, identifier: str) -> bool:
        return identifier in DeletedRecords(self._deleted, bool(self._info.parts))

    def _part_of(self, reject: Reject) -> int:
        return part_number(reject.record_id) if self._info.parts else 0

    def _is_rejected(self, raw: RawRecord) -> bool:
        places = [(raw.file, raw.line, part) for part in {raw.part, 0}]
        found = [place for place in places if place in self._rejected]
        self._rejected.update(dict.fromkeys(found, True))
        return bool(found)

    def _compare_contents(self, labeled: list[tuple[RawRecord, str, bytes]]) -> None:
        if self._proofs is None or not labeled:
            self.num_unproven += len(labeled)
            return
        ids = np.frombuffer(b"".join(digest for _, _, digest in labeled), "V16")
        proofs = b"".join(proof_of(digest, raw.record or {}, self._info) for raw, _, digest in labeled)
        same = self._proofs.held(np.frombuffer(proofs, "V16"))
        unknown = self._proofs.unknown(ids)
        self.num_unproven += int((~same & unknown).sum())
        for index in np.flatnonzero(~same & ~unknown):
            raw, identifier, _ = labeled[index]
            message = (
                f"record {identifier!r:.120} is not what was labeled: its content has changed under its id; "
                "`penumbra label run JOB --relabel-changed` labels it again"
            )
            self._error("content_changed", f"{raw.file}:{raw.line}", message)

    def _is_labeled_repeat(self, identifier: str) -> bool:
        """Whether this further record of the same content has labels of its own."""
        if "id" in self._info.fields:
            return False
        number = self._repeats[identifier] = self._repeats.get(identifier, 1) + 1
        digest = np.frombuffer(digest_of(repeated_id(identifier, number)), "V16")
        place = int(np.searchsorted(self._labeled, digest)[0])
        if place == len(self._labeled) or self._labeled[place] != digest[0]:
            return False
        self._seen[place] = True
        return True

    def _identify(self, raw: RawRecord) -> str | None:
        where = f"{raw.file}:{raw.line}"
        if raw.record is None:
            self._error("not_rejected", where, f"the record is broken but not among the rejects: {raw.error}")
            return None
        try:
            return id_of(raw, self._info)
        except ValueError as error:
            self._error("not_rejected", where, f"the record has no id and is not among the rejects: {error}")
            return None

    def _check_rest(self) -> None:
        strangers = int(len(self._seen) - self._seen.sum())
        if strangers:
            other = strangers == len(self._seen) and self.num_records > 0
            hint = (
                f"; none is: the store was made from {self._info.uri}, is this another input?"
                if other
                else ""
            )
            self._error("not_in_input", "input", f"{strangers} labeled records are not in the input{hint}")
        for (file, line, _), found in self._rejected.items():
            if not found:
                self._error("not_in_input", f"{file}:{line}", "a reject names a line that the input lacks")

    def _error(self, kind: str, where: str, message: str) -> None:
        self._findings.error_of_record(kind, where, message)
