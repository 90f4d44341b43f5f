"""Makes the golden files of format version 1: `python -m tests.golden.v1.make_golden [FOLDER]`.

Run once, when the version was frozen. A change of these bytes is a change of the format. (Names of a
store's shards are drawn, so that a second run gives another store of the same kind.)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from logitstore.codec.codebook_training import train_codebooks
from logitstore.codec.codebooks import CodebookSet
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence, Reject
from logitstore.rows.temperature import truncate
from logitstore.shard.writer import write_shard
from logitstore.store import LogitStore
from tests.logitstore.capture import load_capture
from tests.logitstore.random_labels import make_manifest, make_unit

FOLDER = Path(__file__).parent
TOP_K = 20
ROWS = 40


def golden_sequences(value_kind: str) -> tuple[LabelSpec, list[LabeledSequence]]:
    """Three short sequences: plain, ragged with flags and a non-Latin id, empty of rows."""
    spec, sequences = load_capture(TOP_K, value_kind)
    first, second = (_head(sequence) for sequence in sequences[:2])
    second = replace(
        second,
        record_id="запись-δ-記録",
        sample_index=3,
        prompt_length=7,
        label_start=5,
        token_ids_T=np.concatenate([second.token_ids_T, second.token_ids_T[:4]]),
        rows=truncate(second.rows, spec, 9),
        loss_mask_N=np.arange(ROWS) % 3 == 0,
        finish_reason="length",
        flags=("truncated", "repeated"),
    )
    empty = replace(_head(sequences[2], 0), record_id="", finish_reason="stop")
    return spec, [first, second, empty]


def _head(sequence: LabeledSequence, num_rows: int = ROWS) -> LabeledSequence:
    rows = sequence.rows
    cut = {name: getattr(rows, name)[:num_rows] for name in rows.__dataclass_fields__}
    return replace(
        sequence,
        token_ids_T=sequence.token_ids_T[:num_rows],
        rows=replace(rows, **cut),
        loss_mask_N=sequence.loss_mask_N[:num_rows],
    )


def golden_codebooks() -> CodebookSet:
    """Four codebooks for the gap shard."""
    spec, sequences = golden_sequences("gap_f16")
    books = train_codebooks(
        (sequence.rows for sequence in sequences), spec, max_codebooks=4, expected_rows=10**6
    )
    assert books.num_codebooks == 4
    return books


def make_store(folder: Path) -> None:
    """A store of three units: one in the index, with a reject; one that is all rejects; one still a record."""
    store = LogitStore.create(folder, make_manifest(note="golden"))
    reject = Reject("input.jsonl", 7, None, "the line is not valid JSON", "invalid_json")
    unit_id, sequences = make_unit(0, 1)
    store.commit_unit(unit_id, 0, sequences, [reject], seconds=1.5, worker="worker-0")
    store.commit_unit("unit-0001", 1, [], [replace(reject, line=8)], seconds=0.5, worker="worker-1")
    store.compact()
    unit_id, sequences = make_unit(2, 1)
    store.commit_unit(unit_id, 2, sequences, seconds=2.5, worker="worker-1")


def main(folder: Path = FOLDER) -> None:
    books = golden_codebooks()
    (folder / "codebooks.bin").write_bytes(books.to_bytes())
    for value_kind, codebooks in (("gap_f16", books), ("logit_f16", None)):
        spec, sequences = golden_sequences(value_kind)
        write_shard(str(folder / f"{value_kind}.arrow"), sequences, spec, codebooks)
    make_store(folder / "store")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
