"""Each way a store can be wrong is one line of `verify`, and repair never touches what is live."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.codec.codebooks import CodebookSet, identity_codebook
from logitstore.inputs.identity import record_id
from logitstore.inputs.reading import iter_records
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.tools.findings import Findings
from logitstore.tools.garbage import repair
from logitstore.tools.verify import read_rejects, verify_store
from logitstore.tools.verify_input import InputCheck
from tests.conftest import Place
from tests.logitstore.random_labels import commit_units, make_manifest, make_sequence


@pytest.fixture
def store(local_place: Place) -> LogitStore:
    store = LogitStore.create(local_place.uri, make_manifest())
    commit_units(store, range(3))
    return store


def kinds(findings: Findings) -> list[str]:
    return [problem.kind for problem in findings.errors]


def shard_path(store: LogitStore, index: int) -> Path:
    return store.objects.local_path(store.shards()[index].name)


def test_a_sound_store_has_no_problems(place: Place) -> None:
    store = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    commit_units(store, range(2))
    for name in ("status.json", "job.json", "driver.json", "plan/head.json", "logs/run-1.jsonl"):
        store.objects.put(name, b"{}")
    for _ in range(2):
        findings = verify_store(store)
        assert (findings.problems, findings.garbage) == ([], [])
        assert (findings.num_units, findings.num_sequences, findings.num_rows) == (2, 6, 66)
        store.compact()


def test_a_flipped_bit_anywhere_in_a_shard_is_found(store: LogitStore) -> None:
    path = shard_path(store, 1)
    data = path.read_bytes()
    for position in range(0, len(data), max(1, len(data) // 23)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        assert kinds(verify_store(store)) == ["corrupt_shard"], position
    path.write_bytes(data)
    assert verify_store(store).problems == []


def test_a_short_or_missing_shard(store: LogitStore) -> None:
    path = shard_path(store, 0)
    path.write_bytes(path.read_bytes()[:-1])
    shard_path(store, 2).unlink()
    for quick in (False, True):
        assert kinds(verify_store(store, quick=quick)) == ["wrong_size", "missing_shard"]


def test_an_entry_that_counts_wrong(store: LogitStore) -> None:
    name = "commits/unit-0001.json"
    record = json.loads(store.objects.get(name))
    record["shard"]["num_rows"] += 1
    store.objects.put(name, json.dumps(record).encode())
    findings = verify_store(LogitStore.open(store.uri))
    assert kinds(findings) == ["corrupt_shard"]
    assert "(3, 33, 36), its entry says (3, 34, 36)" in findings.errors[0].message


def test_a_record_labeled_twice(store: LogitStore) -> None:
    again = [make_sequence("new"), make_sequence("record-4")]
    store.commit_unit("unit-0003", 3, again, seconds=0, worker="w")
    findings = verify_store(store)
    assert kinds(findings) == ["labeled_twice"]
    assert findings.errors[0].where == "record 'record-4'"
    assert "unit 1 and in unit 3" in findings.errors[0].message


def test_two_samples_of_a_record_are_no_repeat(store: LogitStore) -> None:
    samples = [make_sequence("new", sample_index=index) for index in range(3)]
    store.commit_unit("unit-0003", 3, samples, seconds=0, worker="w")
    assert verify_store(store).problems == []


def age(path: Path) -> None:
    os.utime(path, (1e9, 1e9))


def test_garbage_is_told_from_what_may_live(store: LogitStore) -> None:
    root = Path(store.uri)
    live = {entry.name for entry in store.shards()}
    loser = root / "shards/00000001-unit-0001-00000000000000aa.arrow"
    young = root / "shards/00000007-unit-0007-00000000000000bb.arrow"
    orphan = root / "shards/00000008-unit-0008-00000000000000cc.arrow"
    half = root / "shards/.tmp-1-dead"
    segment = root / "index/00000000000000dd.arrow"
    for path in (loser, young, orphan, half, segment):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 10)
    for path in (orphan, half, segment):
        age(path)
    (root / "notes.txt").write_text("mine")
    findings = verify_store(store)
    assert findings.errors == []
    assert {info.name for info in findings.garbage} == {
        str(path.relative_to(root)) for path in (loser, orphan, half, segment)
    }
    assert [problem.where for problem in findings.problems if problem.kind == "foreign_object"] == [
        "notes.txt"
    ]
    assert repair(store, findings) == 4
    assert young.exists()
    assert (root / "notes.txt").exists()
    assert live <= {f"shards/{path.name}" for path in (root / "shards").iterdir()}
    after = verify_store(store)
    assert (after.errors, after.garbage) == ([], [])


def test_repair_leaves_what_no_store_writes(store: LogitStore) -> None:
    """Files of people and other programs between the store's own, old ones and ones with odd names."""
    names = ["codebooks/README.md", "codebooks/a b.bin", "index/my notes.txt", "index/notes.arrow"]
    for name in names:
        path = Path(store.uri, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        age(path)
    findings = verify_store(store)
    assert sorted(problem.where for problem in findings.problems if problem.kind == "foreign_object") == names
    assert (findings.errors, repair(store, findings)) == ([], 0)
    assert all(Path(store.uri, name).exists() for name in names)


def test_codebooks_about_to_be_named_are_left_alone(store: LogitStore) -> None:
    """`set_codebooks` puts a set and then names it; `verify --repair` may run in between."""
    first, second = identity_codebook(101), small_codebooks()
    path = Path(store.uri, "codebooks", f"{first.hash.removeprefix('blake2b-128:')}.bin")
    store.objects.put(str(path.relative_to(store.uri)), first.to_bytes())
    assert verify_store(store).problems == []
    age(path)
    findings = verify_store(store)  # however old: the writer may be suspended
    assert ([problem.kind for problem in findings.problems], findings.garbage) == (["unnamed_codebooks"], [])
    store.set_codebooks(second)
    os.utime(path)
    findings = verify_store(store)  # by now it has lost, however young
    assert (findings.errors, repair(store, findings), path.exists()) == ([], 1, False)
    assert LogitStore.open(store.uri).codebooks() is not None


def test_codebooks_that_are_gone_are_told_as_such(local_place: Place) -> None:
    store = LogitStore.create(local_place.uri, make_manifest())
    name = f"{store.set_codebooks(small_codebooks()).hash.removeprefix('blake2b-128:')}.bin"
    commit_units(store, range(2))
    store.objects.delete(f"codebooks/{name}")
    findings = verify_store(LogitStore.open(store.uri))
    assert kinds(findings) == ["corrupt_shard", "corrupt_shard", "corrupt_codebooks"]
    assert all(f"{name} does not exist" in problem.message for problem in findings.errors)


def small_codebooks() -> CodebookSet:
    return CodebookSet(np.arange(101, dtype=np.int32)[::-1].copy(), np.zeros((1, 0), np.int32), 101)


def test_repair_leaves_a_corrupt_but_live_shard(store: LogitStore) -> None:
    path = shard_path(store, 0)
    path.write_bytes(b"broken")
    findings = verify_store(store, grace_sec=-10)
    assert kinds(findings) == ["wrong_size"]
    assert repair(store, findings) == 0
    assert path.exists()


def test_a_shard_committed_after_the_listing_is_not_garbage(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = store.objects.list_info

    def commit_after_listing(prefix: str = "") -> list[Any]:
        found = listing(prefix)
        if prefix == "":
            commit_units(store, [3])
        return found

    monkeypatch.setattr(store.objects, "list_info", commit_after_listing)
    findings = verify_store(store, grace_sec=-10)
    assert (findings.problems, findings.num_units) == ([], 4)


class TestAgainstInput:
    @pytest.fixture
    def labeled(self, tmp_path: Path) -> tuple[LogitStore, Path]:
        """Five records labeled, the sixth line broken, the seventh a repeat of the first."""
        lines = [json.dumps({"text": f"text {index}"}) for index in range(5)] + [
            "{broken",
            '{"text": "text 0"}',
        ]
        path = tmp_path / "input.jsonl"
        path.write_text("\n".join(lines) + "\n")
        store = LogitStore.create(tmp_path / "store", make_manifest())
        info = store.manifest.input
        names = [record_id(raw.record, info) for raw in iter_records(str(path)) if raw.record][:5]
        rejects = [Reject("input.jsonl", 6, None, "not JSON", "invalid_json")]
        store.commit_unit("u0", 0, [make_sequence(name) for name in names], rejects, seconds=0, worker="w")
        repeat = {
            "file": "input.jsonl",
            "line": 7,
            "record_id": names[0],
            "reason": "again",
            "kind": "duplicate_id",
        }
        store.objects.put("rejects.jsonl", json.dumps(repeat).encode() + b"\n")
        return store, path

    def check(self, store: LogitStore, path: Path) -> Findings:
        findings = verify_store(store)
        rejects = [*read_rejects(store.objects, findings), *store.rejects()]
        InputCheck(findings, rejects, store.manifest.input, None).run(iter_records(str(path)))
        return findings

    def test_every_record_once(self, labeled: tuple[LogitStore, Path]) -> None:
        assert self.check(*labeled).problems == []

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda lines: [*lines, '{"text": "new"}'], ["not_labeled"]),
            (lambda lines: [*lines, '{"text": "text 3"}'], ["id_repeated"]),
            (lambda lines: [*lines, "[1]"], ["not_rejected"]),
            (lambda lines: [*lines[:4], '{"text": "other"}', *lines[5:]], ["not_labeled", "not_in_input"]),
            (lambda lines: lines[:6], ["not_in_input"]),
        ],
    )
    def test_each_difference(self, labeled: tuple[LogitStore, Path], change, expected: list[str]) -> None:
        store, path = labeled
        lines = change(path.read_text().splitlines())
        path.write_text("\n".join(lines) + "\n")
        assert kinds(self.check(store, path)) == expected

    def test_rejects_at_the_lines_of_other_records(self, labeled: tuple[LogitStore, Path]) -> None:
        """The first line is gone, so every reject points one line too far."""
        store, path = labeled
        path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
        found = kinds(self.check(store, path))
        assert sorted(set(found)) == ["not_in_input", "not_rejected"]

    def test_a_broken_line_of_rejects_is_a_problem(self, labeled: tuple[LogitStore, Path]) -> None:
        store, path = labeled
        store.objects.put("rejects.jsonl", store.objects.get("rejects.jsonl") + b'{"file": 3}\n')
        findings = self.check(store, path)
        assert kinds(findings) == ["bad_reject"]
        assert findings.errors[0].where == "rejects.jsonl:2"
