"""A student's snapshots beside its teacher's rows, as the page is given them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence, LabelRows
from logitstore.rows.temperature import truncate
from logitstore.students.snapshots import FollowedSequence, StudentRows, read_snapshots
from logitstore.viewer.encoding import Json, encode


class StudentView:
    """The snapshots in one student's folder; raises as `read_snapshots` does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshots = read_snapshots(folder)
        self._by_record: dict[tuple[str, int], list[FollowedSequence]] = {}
        """Several where several stores have a record of this id."""
        for one in self.snapshots.sequences:
            self._by_record.setdefault((one.record_id, one.sample_index), []).append(one)

    @property
    def records(self) -> list[tuple[str, int]]:
        """(record id, sample index) of the sequences that were followed, of whatever store."""
        return list(self._by_record)

    def follows(self, sequence: LabeledSequence, spec: LabelSpec) -> bool:
        """Whether it was followed, and not one of the same id in a store with other label rows."""
        return self._followed(sequence, spec) is not None

    def payload(self, sequence: LabeledSequence, spec: LabelSpec) -> Json | None:
        """What the page shows of it; None where it was not followed.

        Entries are as many as the rows of `sequence` have, the mass of the student's others in its tail.
        """
        followed = self._followed(sequence, spec)
        if followed is None:
            return None
        top_k = sequence.rows.token_ids_NK.shape[1]
        return {
            "steps": list(self.snapshots.steps),
            "num_rows": followed.num_rows,
            "vocab_size": followed.vocab_size,
            "snapshots": [_snapshot_payload(taken, spec, top_k) for taken in followed.snapshots],
        }

    def own_ids(self, sequence: LabeledSequence, spec: LabelSpec) -> np.ndarray:
        """The ids of the student's first choices, whose texts the page needs too."""
        followed = self._followed(sequence, spec)
        if followed is None:
            return np.zeros(0, np.int32)
        return np.unique(np.concatenate([taken.own_token_ids_N for taken in followed.snapshots]))

    def _followed(self, sequence: LabeledSequence, spec: LabelSpec) -> FollowedSequence | None:
        """By the label rows themselves, since a store may have another address than it had in training."""
        named = self._by_record.get((sequence.record_id, sequence.sample_index), [])
        return next((one for one in named if _fits(one, sequence.rows, spec)), None)


def _fits(followed: FollowedSequence, rows: LabelRows, spec: LabelSpec) -> bool:
    if followed.temperatures != spec.temperatures or followed.num_rows > rows.num_rows:
        return False
    first, top_k = followed.snapshots[0].rows, rows.token_ids_NK.shape[1]
    if top_k > first.token_ids_NK.shape[1]:
        return False
    ids_NK = rows.token_ids_NK[: followed.num_rows]
    is_entry_NK = np.arange(top_k) < rows.count_N[: followed.num_rows, None]
    return bool((~is_entry_NK | (ids_NK == first.token_ids_NK[:, :top_k])).all())


def _snapshot_payload(taken: StudentRows, spec: LabelSpec, top_k: int) -> Json:
    rows = truncate(taken.rows, spec, top_k)
    return {
        "logits_NK": encode(rows.logits_NK, "<f4"),
        "logsumexp_NM": encode(rows.logsumexp_NM, "<f4"),
        "log_tail_mass_NM": encode(rows.log_tail_mass_NM, "<f4"),
        "label_logprob_N": encode(rows.label_logprob_N, "<f4"),
        "label_rank_N": encode(rows.label_rank_N, "<i4"),
        "own_token_ids_N": encode(taken.own_token_ids_N, "<i4"),
        "own_logits_N": encode(taken.own_logits_N, "<f4"),
    }
