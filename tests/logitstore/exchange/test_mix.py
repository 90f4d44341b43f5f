"""`penumbra store mix`, and rows at given ids: against whole distributions of two teachers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from logitstore.__main__ import main
from logitstore.errors import (
    InvalidLabelsError,
    StoreChangedError,
    StoreExistsError,
    UnsupportedFormatError,
    UnsupportedInputError,
)
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.mix import mix_stores
from logitstore.manifest import reading
from logitstore.manifest.fields import GIVEN_ENTRIES, SEGMENTS, STUDENT_PROMPTS, Manifest, ShardEntry
from logitstore.records import LabeledSequence, LabelRows, Reject
from logitstore.shard import metadata
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from logitstore.viewer.pages import SequencePages
from tests.conftest import Place
from tests.logitstore.random_labels import VOCAB_SIZE, exact_rows, make_manifest
from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import SettingError

NUM_ROWS = 9
NAMES = ("a", "b", "c", "d")


def logits_of(teacher: str, record: str) -> np.ndarray:
    """float64 [N, V]: two teachers that are not far apart, to three decimals."""
    shared = np.random.default_rng(len(record) + ord(record[0])).normal(0, 3, (NUM_ROWS, VOCAB_SIZE))
    own = np.random.default_rng(sum(map(ord, teacher + record))).normal(0, 1, (NUM_ROWS, VOCAB_SIZE))
    return np.round(shared + own, 3)


def tokens_of(record: str) -> np.ndarray:
    return np.random.default_rng(ord(record[0])).integers(0, VOCAB_SIZE, NUM_ROWS + 1).astype(np.int32)


def rows_at(logits_NV: np.ndarray, ids_NK: np.ndarray, labels_N: np.ndarray) -> LabelRows:
    """Rows at these ids, exact normalisers and tails; the ids are sorted by logit."""
    stored_NK = np.take_along_axis(logits_NV, ids_NK, axis=1)
    order_NK = np.argsort(-stored_NK, axis=1, kind="stable")
    ids_NK = np.take_along_axis(ids_NK, order_NK, axis=1)
    rest_NV = logits_NV.copy()
    np.put_along_axis(rest_NV, ids_NK, -np.inf, axis=1)
    return exact_rows(logits_NV, ids_NK, rest_NV, labels_N)


def top_ids(teacher: str, record: str, top_k: int) -> np.ndarray:
    return np.argsort(-logits_of(teacher, record), axis=1, kind="stable")[:, :top_k]


def sequence(teacher: str, record: str, ids_NK: np.ndarray) -> LabeledSequence:
    tokens = tokens_of(record)
    rows = rows_at(logits_of(teacher, record), ids_NK, tokens[1:])
    return LabeledSequence(record, 0, tokens, 0, 1, rows, np.ones(NUM_ROWS, bool), "scored")


def given_manifest(top_k: int, model: str) -> Manifest:
    plain = make_manifest(top_k, model=model)
    return replace(plain, features=(GIVEN_ENTRIES,), labels=replace(plain.labels, support="given"))


def make_store(
    place: str | Path, teacher: str, top_k: int, names: Sequence[str] = NAMES, ids_of: str | None = None
) -> LogitStore:
    """The teacher's top entries, or its entries at the top ids of the teacher `ids_of`."""
    manifest = make_manifest(top_k, model=teacher) if ids_of is None else given_manifest(top_k, teacher)
    store = LogitStore.create(place, manifest)
    for unit, part in enumerate((names[:2], names[2:])):
        sequences = [sequence(teacher, name, top_ids(ids_of or teacher, name, top_k)) for name in part]
        if sequences:
            store.commit_unit(f"unit-{unit}", unit, sequences, seconds=0.0, worker="test")
    return store


def probabilities(teacher: str, record: str) -> np.ndarray:
    logits_NV = logits_of(teacher, record)
    return np.exp(logits_NV - np.logaddexp.reduce(logits_NV, axis=1, keepdims=True))


@pytest.mark.parametrize("ids_of", [None, "one"])
def test_the_mixture_is_the_sum_of_both_distributions(tmp_path: Path, ids_of: str | None) -> None:
    first = make_store(tmp_path / "one", "one", 16)
    second = make_store(tmp_path / "two", "two", 16, NAMES[::-1], ids_of)
    mixed = mix_stores((first, second), str(tmp_path / "mixed"), weights=(0.7, 0.3))
    assert not verify_store(mixed).errors
    counts = []
    for found in mixed.iter_sequences():
        p_NV = 0.7 * probabilities("one", found.record_id) + 0.3 * probabilities("two", found.record_id)
        for row in range(NUM_ROWS):
            count = int(found.rows.count_N[row])
            counts.append(count)
            ids = found.rows.token_ids_NK[row, :count]
            both = set(top_ids("one", found.record_id, 16)[row].tolist())
            both &= set(top_ids(ids_of or "two", found.record_id, 16)[row].tolist())
            assert set(ids.tolist()) == both
            p_K = np.exp(found.rows.logits_NK[row, :count] - found.rows.logsumexp_NM[row, 0])
            assert p_K == pytest.approx(p_NV[row, ids], rel=8e-3)
            tail = np.exp(found.rows.log_tail_mass_NM[row, 0])
            assert tail == pytest.approx(1 - p_NV[row, ids].sum(), rel=2e-3, abs=1e-5)
            label = found.token_ids_T[row + 1]
            assert np.exp(found.rows.label_logprob_N[row]) == pytest.approx(p_NV[row, label], rel=1e-3)
    assert (min(counts) == 16) == (ids_of is not None)


def test_a_prefix_of_given_entries_is_refused_wherever_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "two", "two", 16, ids_of="one")
    assert not verify_store(store).errors
    assert len(list(store.iter_sequences(top_k=16))) == len(NAMES)
    with pytest.raises(UnsupportedInputError, match="at ids that were given"):
        list(store.iter_sequences(top_k=8))
    with pytest.raises(SettingError, match="no top-K"):
        StreamingLogitDataset(store.uri, top_k=8)
    assert len(StreamingLogitDataset(store.uri, top_k=16)) == len(NAMES)
    for command in (
        ["cat", store.uri],
        ["merge", store.uri, "--out", str(tmp_path / "merged")],
        ["export", store.uri, "--to", "parquet", str(tmp_path / "table.parquet")],
        ["export", store.uri, "--to", "jsonl", str(tmp_path / "tables/")],
        ["export", store.uri, "--to", "npz", str(tmp_path / "capture.npz")],
    ):
        assert main([*command, "--top-k", "4"]) == 2, command
        assert "at ids that were given" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    (first, *_) = SequencePages(store).read(0, 2, top_k=1)
    assert first.rows.token_ids_NK.shape[1] == 16
    assert main(["inspect", store.uri]) == 0
    said = capsys.readouterr().out
    assert "given entries" in said
    assert "of the mass at T=1 on average" not in said


def test_older_readers_refuse_given_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "two", "two", 16, ids_of="one")
    (entry, _) = store.shards()
    data = store.objects.get(entry.name)
    monkeypatch.setattr(metadata, "KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match="given_entries"):
        ShardReader(io.BytesIO(data), store.manifest.labels, None)
    monkeypatch.setattr(reading, "KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match="given_entries"):
        LogitStore.open(store.uri)


def test_given_and_top_entries_are_not_merged(tmp_path: Path) -> None:
    top = make_store(tmp_path / "top", "two", 16, NAMES[:2])
    given = make_store(tmp_path / "given", "two", 16, NAMES[2:], ids_of="one")
    with pytest.raises(StoreChangedError, match="support"):
        merge_stores([top, given], str(tmp_path / "both"))


def test_what_both_did_not_label_is_refused(tmp_path: Path) -> None:
    first = make_store(tmp_path / "one", "one", 16)
    with pytest.raises(InvalidLabelsError, match=r"'d'.*is not in"):
        mix_stores((first, make_store(tmp_path / "two", "two", 16, NAMES[:3])), str(tmp_path / "out"))
    other = LogitStore.create(tmp_path / "other", make_manifest(16, model="two"))
    changed = [sequence("two", name, top_ids("two", name, 16)) for name in NAMES]
    changed[1].token_ids_T[3] ^= 1
    other.commit_unit("unit-0", 0, changed, seconds=0.0, worker="test")
    with pytest.raises(InvalidLabelsError, match=r"'b'.*has other tokens"):
        mix_stores((first, other), str(tmp_path / "out2"))


@pytest.mark.parametrize(
    ("own", "others", "says"),
    [
        ([7], [7], None),
        ([7], None, None),  # the second teacher scored the first one's text
        ([7], [8], "another prompt of the student's own"),
        (None, [7], "name the two stores the other way round"),
    ],
)
def test_a_prompt_of_the_students_own_is_not_passed_over(
    own: list[int] | None, others: list[int] | None, says: str | None, tmp_path: Path
) -> None:
    stores = []
    for teacher, prompt in (("one", own), ("two", others)):
        manifest = make_manifest(16, model=teacher)
        if prompt is not None:
            labels = replace(manifest.labels, extra_columns=(STUDENT_PROMPTS,))
            manifest = replace(manifest, features=(STUDENT_PROMPTS,), labels=labels)
        whole = sequence(teacher, "a", top_ids(teacher, "a", 16))
        ids = None if prompt is None else np.array(prompt, np.int32)
        one = replace(
            whole, prompt_length=4, label_start=4, rows=whole.rows.slice(3, NUM_ROWS),
            loss_mask_N=whole.loss_mask_N[3:], student_prompt_ids=ids,
        )  # fmt: skip
        store = LogitStore.create(tmp_path / teacher, manifest)
        store.commit_unit("unit-0", 0, [one], seconds=0.0, worker="test")
        stores.append(store)
    if says is not None:
        with pytest.raises(InvalidLabelsError, match=says):
            mix_stores((stores[0], stores[1]), str(tmp_path / "mixed"))
        assert not (tmp_path / "mixed").exists()
        return
    (mixed,) = mix_stores((stores[0], stores[1]), str(tmp_path / "mixed")).iter_sequences()
    assert mixed.student_prompt_ids is not None
    assert mixed.student_prompt_ids.tolist() == own


def test_a_row_without_a_common_id_is_refused_unless_it_is_masked(tmp_path: Path) -> None:
    first = make_store(tmp_path / "one", "one", 4, NAMES[:1])
    ids_NK = top_ids("two", "a", VOCAB_SIZE)
    outside_NK = np.stack(
        [[i for i in ids if i not in top_ids("one", "a", 4)[row]][:4] for row, ids in enumerate(ids_NK)]
    )
    others = sequence(
        "two", "a", np.where(np.arange(NUM_ROWS)[:, None] == 2, outside_NK, top_ids("one", "a", 4))
    )
    for name, mask, fails in (("counts", True, True), ("masked", False, False)):
        store = LogitStore.create(tmp_path / name, given_manifest(4, "two"))
        loss_mask = np.arange(NUM_ROWS) != 2
        one = replace(others, loss_mask_N=loss_mask | mask)
        store.commit_unit("unit-0", 0, [one], seconds=0.0, worker="test")
        if fails:
            with pytest.raises(InvalidLabelsError, match="no id that both stores know at position 3"):
                mix_stores((first, store), str(tmp_path / f"out-{name}"))
            continue
        (found,) = mix_stores((first, store), str(tmp_path / f"out-{name}")).iter_sequences()
        assert found.loss_mask_N.tolist() == loss_mask.tolist()
        assert found.rows.count_N[2] == 1
        assert found.rows.logsumexp_NM[2, 0] == pytest.approx(np.log(VOCAB_SIZE), rel=1e-4)


def test_an_interrupted_mixture_goes_on_and_other_weights_are_refused(place: Place, tmp_path: Path) -> None:
    stores = make_store(tmp_path / "one", "one", 16), make_store(tmp_path / "two", "two", 16)
    commit, calls = LogitStore.commit_unit, []

    def dying(self: LogitStore, *args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(self, *args, **options)  # type: ignore[arg-type]

    with mock.patch.object(LogitStore, "commit_unit", dying), pytest.raises(KeyboardInterrupt):
        mix_stores(stores, place.uri, storage_options=place.storage_options)
    mixed = mix_stores(stores, place.uri, storage_options=place.storage_options)
    whole = mix_stores(stores, str(tmp_path / "whole"))
    assert [entry.checksum for entry in mixed.shards()] == [entry.checksum for entry in whole.shards()]
    with pytest.raises(StoreExistsError, match="teacher"):
        mix_stores(stores, place.uri, weights=(0.9, 0.1), storage_options=place.storage_options)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uris = [make_store(tmp_path / name, name, 16).uri for name in ("one", "two")]
    assert main(["mix", *uris, "--out", str(tmp_path / "x"), "--weights", "0.5", "0.6"]) == 2
    assert "add up to 1" in capsys.readouterr().err
    other = replace(make_manifest(16), tokenizer=replace(make_manifest().tokenizer, fingerprint="sha256:x"))
    LogitStore.create(tmp_path / "other", other)
    assert main(["mix", uris[0], str(tmp_path / "other"), "--out", str(tmp_path / "x")]) == 2
    assert "retokenize" in capsys.readouterr().err
    assert main(["mix", *uris, "--out", str(tmp_path / "x"), "--quiet"]) == 0
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_bytes())
    assert manifest["teacher"]["model"] == "0.5 one + 0.5 two"
    assert manifest["features"] == [GIVEN_ENTRIES]
    assert manifest["labels"]["temperatures"] == [1.0]


def test_rows_that_the_second_store_does_not_count_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "one", "one", 16)
    second = LogitStore.create(tmp_path / "two", make_manifest(16, model="two"))
    sequences = [sequence("two", name, top_ids("two", name, 16)) for name in NAMES]
    mask_N = np.arange(NUM_ROWS) >= 4
    short = [replace(one, loss_mask_N=mask_N) if one.record_id == "a" else one for one in sequences]
    second.commit_unit("u", 0, short, seconds=0.0, worker="test")
    places = [str(tmp_path / name) for name in ("one", "two", "mixed")]
    for _ in ("made", "found again, by a run that makes none of it"):
        assert main(["mix", *places[:2], "--out", places[2]]) == 0
        assert f"4 label rows that count in {places[0]} do not here" in capsys.readouterr().out
    assert main(["mix", places[0], places[0], "--out", str(tmp_path / "same")]) == 0
    assert "do not here" not in capsys.readouterr().out
    again = mix_stores((LogitStore.open(places[2]), LogitStore.open(places[0])), str(tmp_path / "again"))
    assert again.manifest.teacher.model == "0.5 (0.5 one + 0.5 two) + 0.5 one"


def store_with_marks(
    place: Path,
    teacher: str,
    segments: dict[str, list[int]],
    flags: tuple[str, ...],
    names: Sequence[str] = NAMES,
) -> LogitStore:
    """A unit a sequence, with the segments of those that are named; each with these flags."""
    manifest = make_manifest(16, model=teacher)
    if segments:
        labels = replace(manifest.labels, extra_columns=(SEGMENTS,))
        manifest = replace(manifest, features=(SEGMENTS,), labels=labels)
    store = LogitStore.create(place, manifest)
    for unit, name in enumerate(names):
        known = np.array(segments[name], np.uint8) if name in segments else None
        one = replace(sequence(teacher, name, top_ids(teacher, name, 16)), flags=flags, segments_T=known)
        reject = Reject("in", unit, f"bad-{teacher}-{unit}", "why", "too_long")
        store.commit_unit(f"unit-{unit}", unit, [one], [reject], seconds=0.0, worker="test")
    return store


def test_what_is_no_sum_comes_from_the_first_or_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_with_marks(tmp_path / "one", "one", {"a": [1] * 10, "b": [2] * 10}, ("truncated",))
    also = {"a": [2] * 10, "b": [2] * 10, "c": [1] * 10}
    second = store_with_marks(tmp_path / "two", "two", also, ("repeated",), (*NAMES, "e"))
    place, commit = str(tmp_path / "mixed"), LogitStore.commit_unit
    commits = iter(range(3))

    def dying(self: LogitStore, *args: object, **options: object) -> object:
        next(commits)
        return commit(self, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(LogitStore, "commit_unit", dying)
        with pytest.raises(StopIteration):
            mix_stores((first, second), place)
    assert main(["mix", first.uri, second.uri, "--out", place]) == 0
    told = capsys.readouterr().err
    assert f"the segments of 1 sequence differ in {second.uri}" in told
    assert f"only {second.uri} has 1 sequence more, not in the mixture" in told
    mixed = LogitStore.open(place)
    assert [one.record_id for one in mixed.rejects()] == [f"bad-one-{unit}" for unit in range(4)]
    found = {one.record_id: one for one in mixed.iter_sequences()}
    assert {one.flags for one in found.values()} == {("truncated", "repeated")}
    segments = {name: one.segments_T for name, one in found.items()}
    assert {name: None if one is None else one.tolist() for name, one in segments.items()} == {
        "a": [1] * 10,
        "b": [2] * 10,
        "c": [1] * 10,
        "d": None,
    }
    plain = make_store(tmp_path / "plain", "three", 16)
    (one, *_) = mix_stores((plain, second), str(tmp_path / "other")).iter_sequences()
    assert one.segments_T is not None
    assert one.segments_T.tolist() == [2] * 10


def test_rejects_of_a_first_store_without_sequences_are_kept(tmp_path: Path) -> None:
    """`verify --against` would miss them."""
    stores = []
    for name in ("one", "two"):
        store = LogitStore.create(tmp_path / name, make_manifest(16, model=name))
        reject = Reject("in", 0, f"of {name}", "why", "too_long")
        store.commit_unit("u", 0, [], [reject], seconds=0.0, worker="test")
        stores.append(store)
    for _ in range(2):
        mixture = mix_stores((stores[0], stores[1]), str(tmp_path / "mixture"))
        assert [one.record_id for one in mixture.rejects()] == ["of one"]


def test_the_second_store_is_read_once_for_a_unit_where_its_order_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merge_stores([make_store(tmp_path / "parts", "one", 8)], str(tmp_path / "one"))  # of one unit
    second = make_store(tmp_path / "two", "two", 8, names=("a", "c", "b", "d"))
    opened: list[tuple[str, bool]] = []
    open_shard = LogitStore.open_shard

    def counted(store: LogitStore, entry: ShardEntry, *, whole: bool = False) -> ShardReader:
        opened.extend([(entry.name, whole)] if store.uri == second.uri else [])
        return open_shard(store, entry, whole=whole)

    monkeypatch.setattr(LogitStore, "open_shard", counted)
    mix_stores((first, second), str(tmp_path / "mixture"))
    names = [entry.name for entry in second.shards()]
    # For its ids, and by one request for its labels; not again for each sequence.
    assert sorted(opened) == sorted((name, whole) for name in names for whole in (False, True))


def test_inspect_knows_no_rank_of_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [make_store(tmp_path / name, name, 16) for name in ("one", "two")]
    mix_stores((stores[0], stores[1]), str(tmp_path / "mixed"))
    assert main(["inspect", str(tmp_path / "mixed")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "no rank is known" in told
    assert "first choice" not in told
