"""What a store holds, found out from FORMAT.md alone with json, pyarrow and hashlib, agrees with `LogitStore`.

It shares no code with `logitstore`. Shards themselves: test_standalone_reader.py.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from logitstore.codec.codebooks import CodebookSet
from logitstore.records import Reject
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_unit

SHARD_FIELDS = (
    "unit_id", "unit_index", "name", "num_sequences", "num_rows", "num_tokens", "num_bytes", "checksum",
    "num_rejects", "seconds", "worker", "committed_sec",
)  # fmt: skip
SEGMENT = pa.schema(
    [
        pa.field(name, dtype, nullable=False)
        for name, dtype in [
            ("unit_index", pa.int64()),
            ("unit_id", pa.utf8()),
            ("attempt", pa.binary(8)),
            ("has_shard", pa.bool_()),
            *((f"num_{what}", pa.int64()) for what in ("sequences", "rows", "tokens", "bytes")),
            ("checksum", pa.binary(16)),
            ("num_rejects", pa.int64()),
            ("seconds", pa.float64()),
            ("worker", pa.utf8()),
            ("committed_sec", pa.float64()),
        ]
    ]
)


def blake(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_json(path: Path, fields: set[str]) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    assert value["format_version"] == 1
    assert set(value) == fields | {"format_version"}
    return value


def read_units(root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Shard entries by unit index, and rejects by unit."""
    manifest = read_json(
        root / "manifest.json",
        {"teacher", "tokenizer", "labels", "input", "created", "codebooks", "features", "config"},
    )
    assert manifest["features"] == []
    core = {**manifest, "created": "", "codebooks": None, "config": {}}
    name = blake(json.dumps(core, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    records = sorted((root / "commits").glob("*.json"))  # listed before the index is read
    units: dict[int, dict[str, Any]] = {}
    rejects: dict[int, list[dict[str, Any]]] = {}
    if (root / "index.json").exists():
        index = read_json(root / "index.json", {"generation", "manifest", "segments"})
        assert index["manifest"] == name
        for segment in index["segments"]:
            data = (root / segment["name"]).read_bytes()
            assert (len(data), f"blake2b-128:{blake(data)}") == (segment["num_bytes"], segment["checksum"])
            table = pa.ipc.open_stream(data).read_all()
            assert table.schema.equals(SEGMENT)
            assert table.num_rows == segment["num_entries"]
            for row in table.to_pylist():
                attempt, has_shard, digest = (row.pop(key) for key in ("attempt", "has_shard", "checksum"))
                row["checksum"] = f"blake2b-128:{digest.hex()}" if has_shard else ""
                shard = f"shards/{row['unit_index']:08d}-{row['unit_id']}-{attempt.hex()}.arrow"
                units[row["unit_index"]] = {**row, "name": shard if has_shard else ""}
            if segment["rejects_name"]:
                data = (root / segment["rejects_name"]).read_bytes()
                assert len(data) == segment["rejects_bytes"]
                assert f"blake2b-128:{blake(data)}" == segment["rejects_checksum"]
                for row in pa.ipc.open_stream(data).read_all().to_pylist():
                    rejects.setdefault(row.pop("unit_index"), []).append(row)
    for path in records:
        record = read_json(path, {"attempt", "manifest", "shard", "rejects"})
        assert record["manifest"] == name
        entry = record["shard"]
        assert set(entry) == set(SHARD_FIELDS)
        assert path.stem == entry["unit_id"]
        if entry["unit_index"] not in units:  # where both have it the index wins
            units[entry["unit_index"]] = entry
            rejects[entry["unit_index"]] = record["rejects"]
    in_order = sorted(units)
    return [units[index] for index in in_order], [r for index in in_order for r in rejects.get(index, [])]


@pytest.mark.parametrize("compacted", [0, 2, 4])
def test_it_finds_the_same_units(tmp_path: Path, compacted: int) -> None:
    """None, some or all units in the index; one without sequences; a late record of a unit in the index."""
    store = LogitStore.create(tmp_path, make_manifest(model="téacher", note="x"))
    books = CodebookSet(np.arange(101, dtype=np.int32), np.zeros((1, 0), np.int32), 101)
    store.set_codebooks(books)
    for unit_index in range(4):
        unit_id, sequences = make_unit(unit_index)
        bad = [Reject("in.jsonl", unit_index, None, "bad ü", "empty")] * (unit_index % 3)
        sequences = [] if unit_index == 1 else sequences
        store.commit_unit(unit_id, unit_index, sequences, bad, seconds=0.5, worker="w")
        record = (tmp_path / "commits" / f"{unit_id}.json").read_bytes()
        if unit_index + 1 == compacted:
            store.compact()
            (tmp_path / "commits" / f"{unit_id}.json").write_bytes(record.replace(b'"w"', b'"ghost"'))
    store = LogitStore.open(tmp_path)
    units, rejects = read_units(tmp_path)
    assert units == [{name: getattr(entry, name) for name in SHARD_FIELDS} for entry in store.shards()]
    assert [unit["worker"] for unit in units] == ["w"] * 4
    assert [Reject(**reject) for reject in rejects] == store.rejects()
    for unit in units:
        if unit["name"]:
            data = (tmp_path / unit["name"]).read_bytes()
            assert (len(data), f"blake2b-128:{blake(data)}") == (unit["num_bytes"], unit["checksum"])
    current = read_json(tmp_path / "codebooks/current.json", {"hash"})["hash"]
    data = (tmp_path / f"codebooks/{current.removeprefix('blake2b-128:')}.bin").read_bytes()
    assert current == f"blake2b-128:{blake(data)}" == books.hash
