"""`store publish`: what others get is the same labels, a card, and nothing of the machines."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from logitstore.__main__ import main
from logitstore.errors import IndexLostError, StoreChangedError, StoreExistsError, UnsupportedInputError
from logitstore.index.commits import shard_place
from logitstore.job_objects import JobStatus
from logitstore.objects.opening import Objects
from logitstore.publishing import joining, publish
from logitstore.publishing.card import CardSettings
from logitstore.publishing.publish import publish_store
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import put_tokenizer, read_file, replace_tokenizer, stored_tokenizer
from logitstore.tools.deletion import delete_records
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import make_manifest, make_sequence
from tests.servers.s3_dialects import run_dialect
from trainer import StreamingLogitDataset

SECRETS = ("secret-host", "/home/me", "private-bucket", "plan-of-the-job", "taken-down", "never-labeled")
"""What must not be published, in all of its forms."""


def sequences_of(store: LogitStore) -> list[tuple[str, bytes, bytes]]:
    return [
        (one.record_id, one.rows.logits_NK.tobytes(), one.rows.log_tail_mass_NM.tobytes())
        for one in store.iter_sequences()
    ]


def test_what_is_published_is_the_store_and_names_no_machine(
    store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "public"
    assert main(["publish", store.uri, str(out), "--repo", "me/labels"]) == 0
    assert "18 sequences in 1 shard" in capsys.readouterr().out
    public = LogitStore.open(out)
    assert sequences_of(public) == sequences_of(store)
    assert verify_store(public).problems == []
    assert public.rejects() == []
    tokenizer = stored_tokenizer(public.objects)
    assert tokenizer is not None
    files = {file.name: read_file(public.objects, file) for file in tokenizer.files}
    assert files["tokenizer.json"] == b"{}"
    assert json.loads(files["tokenizer_config.json"]) == {"a": 1, "nested": {"b": ["c"]}}
    assert public.manifest.input.uri == "prompts.jsonl"
    assert public.manifest.config == {
        "sampling": {"temperature": 0.7},
        "input": {"chat_template": True},
        "labels": {"turns": "all"},  # else a reader took all turns for one answer
    }
    published = [(path, path.read_bytes()) for path in sorted(out.rglob("*")) if path.is_file()]
    assert {path.relative_to(out).parts[0] for path, _ in published} == {
        "README.md", "index", "index.json", "manifest.json", "shards", "tokenizer",
    }  # fmt: skip
    found = [(path.name, secret) for path, data in published for secret in SECRETS if secret.encode() in data]
    assert found == []


def test_why_ids_have_no_index_is_said(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("logitstore.index.ids.building.MAX_ENTRIES", 3)
    assert main(["publish", store.uri, str(tmp_path / "out"), "--allow-paths"]) == 0
    assert "ids are looked up in the shards: " in capsys.readouterr().err


def test_it_trains_like_the_source(store: LogitStore, tmp_path: Path) -> None:
    publish_store(store, Objects(tmp_path / "public"), CardSettings())

    def batches(uri: str) -> dict[str, np.ndarray]:
        samples = list(StreamingLogitDataset(uri, batch_size=2, shuffle=True))
        return {one.sequence.record_id: one.sequence.rows.logits_NK for one in samples}

    ours, theirs = batches(str(tmp_path / "public")), batches(store.uri)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_shards_are_joined_without_being_decoded_where_nothing_is_deleted(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max(entry.num_bytes for entry in store.shards())
    decoded: list[str] = []
    real = joining.write_shard
    monkeypatch.setattr(joining, "write_shard", lambda *args: decoded.append("") or real(*args))
    result = publish_store(store, Objects(tmp_path / "public"), CardSettings(), shard_bytes=2 * size + 1)
    assert result.num_shards == 3
    assert len(decoded) == 1, "the one with the deleted sequence"
    public = LogitStore.open(tmp_path / "public")
    assert sequences_of(public) == sequences_of(store)
    assert [entry.num_sequences for entry in public.shards()] == [6, 6, 6]


def test_a_large_store_stays_below_ten_thousand_files(store: LogitStore) -> None:
    entry = dataclasses.replace(store.shards()[0], num_bytes=3_000_000)

    class Many:
        def shards(self) -> list[object]:
            return [entry] * 200_000

        def deleted_places(self, entry: object) -> np.ndarray:
            return np.zeros(0, np.int64)

    planned = joining.plan_shards(Many())  # type: ignore[arg-type]  # what it asks of a store
    assert 4_000 < len(planned) < 10_000
    assert sum(len(one.entries) for one in planned) == 200_000


def test_all_records_without_labels_are_counted_once(store: LogitStore, tmp_path: Path) -> None:
    """Those of planning too, which are in no unit; the job's list has those of the engines again."""
    planned = Reject("/home/me/prompts.jsonl", 9, None, "no JSON", "invalid_json")
    lines = [json.dumps(dataclasses.asdict(one)) for one in (planned, *store.rejects())]
    store.objects.put("rejects.jsonl", "\n".join(lines).encode())
    result = publish_store(store, Objects(tmp_path / "public"), CardSettings())
    assert result.num_rejects == 2
    assert "| Records without labels | 2, left out here |" in (tmp_path / "public/README.md").read_text()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "chat_template.jinja",
            "{# from /home/you/templates/chat.jinja #}{{ messages }}",
            "/home/you/templates",
        ),
        ("tokenizer_config.json", '{"auto_map": {"A": "/mnt/models/mine--file.A"}}', "/mnt/models/mine"),
        ("tokenizer_config.json", '{"extra": ["s3://our-bucket/model"]}', "s3://our-bucket/model"),
        ("special_tokens_map.json", '{"note": "C:\\\\Users\\\\me\\\\x"}', "Users"),
        ("tokenizer.json", '{"model": {}, "comment": "~/runs/7"}', "~/runs/7"),
        ("generation_config.json", '{"from": "./out/of-the-job"}', "./out/of-the-job"),
    ],
)
def test_places_on_machines_are_refused(
    tmp_path: Path, name: str, content: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest(output={"uri": "./out/of-the-job"}))
    store.commit_unit("u", 0, [make_sequence("a")], seconds=0, worker="w")
    put_tokenizer(store.objects, {name: content.encode()})
    out = tmp_path / "public"
    assert main(["publish", store.uri, str(out)]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert says in said.replace("\\\\", "\\")
    assert "--allow-paths" in said
    assert not out.exists() or not list(out.rglob("*.*")), "nothing is written before"
    assert main(["publish", store.uri, str(out), "--allow-paths"]) == 0
    tokenizer = stored_tokenizer(Objects(out))
    assert tokenizer is not None
    assert read_file(Objects(out), tokenizer.files[0]).decode() == content


def test_ids_that_are_paths_are_refused_and_words_of_a_tokenizer_are_not(tmp_path: Path) -> None:
    words = {"model": {"vocab": {"/home/me/x": 0, "/usr/lib": 1}}, "added_tokens": []}
    template = "{{ 'Q:\\n' }}</think> /no_think and/or http://localhost:8000/data/x hf://datasets/me/x ~ 1/2"
    files = {
        "tokenizer.json": json.dumps(words),
        "chat_template.jinja": template,
        "merges.txt": "/ home/me/x",
    }
    manifest = make_manifest(input={"chat_template_kwargs": {"system": "/no_think"}})
    store = LogitStore.create(tmp_path / "store", manifest)
    put_tokenizer(store.objects, {name: text.encode() for name, text in files.items()})
    store.commit_unit("u", 0, [make_sequence("a/b#1"), make_sequence("/r/news/7")], seconds=0, worker="w")
    publish_store(store, Objects(tmp_path / "public"), CardSettings())
    store.commit_unit("v", 1, [make_sequence("/data/me/x.jsonl:7")], seconds=0, worker="w")
    with pytest.raises(UnsupportedInputError, match=r"the id of a record: '/data/me/x\.jsonl:7'"):
        publish_store(store, Objects(tmp_path / "public"), CardSettings())
    result = publish_store(store, Objects(tmp_path / "public"), CardSettings(), allow_paths=True)
    assert result.num_sequences == 3


def test_a_file_of_a_tokenizer_that_is_no_json_is_published_as_it_is(
    store: LogitStore, tmp_path: Path
) -> None:
    files = {"tokenizer_config.json": b"[" * 100_000, "special_tokens_map.json": b"{"}
    replace_tokenizer(store.objects, files, "")
    target = Objects(tmp_path / "public")
    publish_store(store, target, CardSettings())
    found = stored_tokenizer(target)
    assert found is not None
    assert {one.name: read_file(target, one) for one in found.files} == files


def test_a_tokenizer_published_before_is_replaced_by_the_one_of_now(
    store: LogitStore, tmp_path: Path
) -> None:
    """As that of an earlier version, which named the machine."""
    target = Objects(tmp_path / "public")
    publish_store(store, target, CardSettings())
    old = stored_tokenizer(target)
    assert old is not None
    target.delete("tokenizer/files.json")
    put_tokenizer(target, {"tokenizer_config.json": b'{"tokenizer_file": "/home/me/t.json"}'})
    publish_store(store, target, CardSettings())
    assert stored_tokenizer(target) == old
    assert not [
        path
        for path in (tmp_path / "public").rglob("*")
        if path.is_file() and "/home/me" in str(path.read_bytes())
    ]
    assert verify_store(LogitStore.open(target.uri)).problems == []


def test_joining_a_million_small_shards_takes_seconds(store: LogitStore) -> None:
    entry = dataclasses.replace(store.shards()[0], num_bytes=1, num_sequences=1)
    started = time.monotonic()
    groups = list(joining._groups([entry] * 100_000, 50_000))
    assert [len(group) for group in groups] == [50_000, 50_000]
    assert time.monotonic() - started < 10


def test_what_was_interrupted_is_refused_and_goes_on(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Objects(tmp_path / "public")
    real = publish.joined_shard
    made: list[str] = []

    def failing(source: LogitStore, joined: joining.Joined):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(joined.name)
        return real(source, joined)

    monkeypatch.setattr(publish, "THREADS", 1)
    monkeypatch.setattr(publish, "joined_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        publish_store(store, target, CardSettings(), shard_bytes=1)
    with pytest.raises(IndexLostError):
        LogitStore.open(target.uri)
    monkeypatch.setattr(publish, "joined_shard", real)
    result = publish_store(store, target, CardSettings(), shard_bytes=1)
    assert (result.num_shards, result.num_written) == (6, 3)
    assert sequences_of(LogitStore.open(target.uri)) == sequences_of(store)


def test_bringing_it_up_to_date_takes_out_what_is_gone(store: LogitStore, tmp_path: Path) -> None:
    target = Objects(tmp_path / "public")
    publish_store(store, target, CardSettings(), shard_bytes=1)
    (tmp_path / "public/README.md").write_text("my own words")
    delete_records(store, frozenset({"record-0"}), "asked for")
    store.commit_unit("later", 9, [make_sequence("later")], seconds=0, worker="w")
    result = publish_store(store, target, CardSettings(), shard_bytes=1)
    assert (result.num_shards, result.num_written, result.wrote_card) == (7, 2, False)
    public = LogitStore.open(target.uri)
    assert sequences_of(public) == sequences_of(store)
    assert verify_store(public).problems == [], "nothing of the earlier one is left"
    assert (tmp_path / "public/README.md").read_text() == "my own words"
    assert publish_store(store, target, CardSettings(), shard_bytes=1, new_card=True).num_written == 0
    assert "Labels of teacher" in (tmp_path / "public/README.md").read_text()


def test_what_somebody_has_in_folders_of_these_names_stays(store: LogitStore, tmp_path: Path) -> None:
    """It was removed without a word, as what an earlier publication had left."""
    for name in ("shards/mine.bin", "index/notes.txt", "shards/0.arrow", "index/sub/a.arrow"):
        path = tmp_path / "public" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for _ in range(2):
        publish_store(store, Objects(tmp_path / "public"), CardSettings())
        kept = [
            path.name
            for path in (tmp_path / "public").rglob("*")
            if path.is_file() and path.read_bytes() == b"mine"
        ]
        assert sorted(kept) == ["0.arrow", "a.arrow", "mine.bin", "notes.txt"]
        store.commit_unit("later", 99, [make_sequence("later")], seconds=0, worker="w")
    living = {entry.name for entry in LogitStore.open(tmp_path / "public").shards()}
    shards = [name for name in Objects(tmp_path / "public").list("shards/") if shard_place(name) is not None]
    assert set(shards) == living
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").write_text("[]")
    with pytest.raises(StoreExistsError, match="is of something else and would be replaced"):
        publish_store(store, Objects(tmp_path / "site"), CardSettings())
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.json"]


def test_a_record_that_was_deleted_where_it_is_published_does_not_come_back(
    store: LogitStore, tmp_path: Path
) -> None:
    """Asked for by a reader of what is published, a deletion was undone by the next publication."""
    place = Objects(tmp_path / "public")
    publish_store(store, place, CardSettings())
    delete_records(LogitStore.open(place.uri), frozenset({"record-7"}), "asked for")
    with pytest.raises(
        StoreExistsError, match=r"deleted from .*public \(1\) and not from .*store, and would"
    ):
        publish_store(store, place, CardSettings())
    delete_records(store, frozenset({"record-7"}), "asked for")
    publish_store(store, place, CardSettings())
    assert "record-7" not in [one.record_id for one in LogitStore.open(place.uri)]


def test_to_an_object_store(store: LogitStore) -> None:
    with run_dialect("plain") as server:
        target = Objects("s3://b/public", server.storage_options)
        publish_store(store, target, CardSettings())
        public = LogitStore.open("s3://b/public", storage_options=server.storage_options)
        assert sequences_of(public) == sequences_of(store)


def test_what_is_refused(store: LogitStore, tmp_path: Path) -> None:
    for target in (store.objects, LogitStore.create(tmp_path / "other", make_manifest(model="b")).objects):
        with pytest.raises(StoreExistsError, match="publish to another place"):
            publish_store(store, target, CardSettings())
    status = JobStatus("running", updated=datetime.now(UTC).isoformat())
    store.objects.put("status.json", status.as_json().encode())
    with pytest.raises(StoreChangedError, match="a job is at work"):
        publish_store(store, Objects(tmp_path / "public"), CardSettings())
    assert (
        publish_store(store, Objects(tmp_path / "public"), CardSettings(), beside_job=True).num_sequences
        == 18
    )


def test_a_store_that_was_published_is_no_place_for_another(store: LogitStore, tmp_path: Path) -> None:
    """Also one whose manifest needs no change: publishing would remove units that another job committed."""
    manifest = make_manifest()
    other = LogitStore.create(tmp_path / "plain", manifest)
    other.commit_unit("mine", 0, [make_sequence("mine")], seconds=0, worker="w")
    other.compact()
    same = LogitStore.create(tmp_path / "same", manifest)
    same.commit_unit("unit", 0, [make_sequence("theirs")], seconds=0, worker="w")
    with pytest.raises(StoreExistsError, match="another store"):
        publish_store(same, other.objects, CardSettings())
    assert [one.record_id for one in LogitStore.open(other.uri)] == ["mine"]
