"""What a retokenized store says of itself, and who reads and merges it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from logitstore.__main__ import main
from logitstore.decoding.tokenizer_choice import choose_texts
from logitstore.errors import (
    CorruptManifestError,
    StoreChangedError,
    UnsupportedFormatError,
    UnsupportedInputError,
)
from logitstore.exchange.merge import merge_stores
from logitstore.manifest import reading
from logitstore.objects.opening import Objects
from logitstore.publishing.card import CardSettings
from logitstore.publishing.publish import publish_store
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.inspection import inspect_store
from tests.logitstore.retokenize.tokenizers_made import (
    TEXTS,
    label_texts,
    mapped,
)


def test_inspect_says_what_was_kept(
    tmp_path: Path, teacher: str, student: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=40, tail="<end>")
    out = str(tmp_path / "out")
    assert main(["retokenize", labels.store.uri, out, "--tokenizer", student]) == 0
    said = capsys.readouterr().out
    assert main(["inspect", out, "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    found = inspected["kept"]
    assert found["num_kept"] / found["num_rows"] < 1
    assert f"{found['num_kept']:,} of {found['num_rows']:,} label rows kept" in said
    assert inspected["retokenized"]["source_digests"] == [labels.store.digest]
    assert main(["inspect", out]) == 0
    assert (
        f"{found['num_kept']:,} of {found['num_rows']:,} label rows kept"
        in capsys.readouterr().out.replace("\n", " ")
    )


def test_inspect_leaves_rows_that_say_nothing_out_of_the_distribution(
    tmp_path: Path, teacher: str, student: str
) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=40)
    target = mapped(labels.store, teacher, student, tmp_path / "out")
    found = inspect_store(target)
    telling = [
        (row, sequence.rows.log_tail_mass_NM[row, 0], sequence.rows.count_N[row])
        for sequence in target.iter_sequences()
        for row in np.flatnonzero(sequence.loss_mask_N)
    ]
    assert found.num_silent_rows == found.num_inspected_rows - len(telling) > 0
    assert sum(found.entries_histogram.values()) == len(telling)
    assert found.tail_mass["1"].mean == pytest.approx(
        np.exp([tail for _, tail, _ in telling]).mean(), rel=1e-5
    )
    assert found.mass_by_k[-1].mass["1"] == pytest.approx(1 - found.tail_mass["1"].mean, abs=1e-4)


def test_readers_that_do_not_know_the_feature_refuse_in_words(
    tmp_path: Path, teacher: str, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=9)
    target = mapped(labels.store, teacher, student, tmp_path / "out")
    monkeypatch.setattr(reading, "KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match="'retokenized'"):
        LogitStore.open(target.uri)
    assert LogitStore.open(labels.store.uri).manifest == labels.store.manifest
    assert b"retokenized" not in (tmp_path / "store" / "manifest.json").read_bytes()
    assert b"teacher_vocab_size" not in (tmp_path / "store" / "manifest.json").read_bytes()


def test_a_manifest_must_have_all_of_the_feature_or_none(tmp_path: Path, teacher: str, student: str) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=9)
    target = mapped(labels.store, teacher, student, tmp_path / "out")
    file = Path(target.uri) / "manifest.json"
    value = json.loads(file.read_bytes())
    del value["labels"]["teacher_vocab_size"]
    file.write_text(json.dumps(value))
    with pytest.raises(CorruptManifestError, match="teacher_vocab_size must be there together"):
        LogitStore.open(target.uri)


def test_the_teachers_tokenizer_must_be_the_stores(tmp_path: Path, teacher: str, student: str) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=9)
    with pytest.raises(UnsupportedInputError, match="--teacher-tokenizer"):
        mapped(labels.store, student, teacher, tmp_path / "out")


def test_merged_stores_name_all_their_sources(tmp_path: Path, teacher: str, student: str) -> None:
    parts = [
        label_texts(str(tmp_path / name), teacher, [TEXTS[number]], top_k=9, prefix=name)
        for number, name in enumerate("ab")
    ]
    first = mapped(parts[0].store, teacher, student, tmp_path / "out0")
    second = mapped(parts[1].store, teacher, student, tmp_path / "out1", merge_spans=True)
    with pytest.raises(StoreChangedError, match="tokenizers differ"):
        merge_stores([first, parts[1].store], str(tmp_path / "wrong"))
    with pytest.raises(StoreChangedError, match="only one has merged spans"):
        merge_stores([first, second], str(tmp_path / "wrong"))
    third = mapped(parts[1].store, teacher, student, tmp_path / "out2")
    both = merge_stores([first, third], str(tmp_path / "both"))
    assert both.manifest.retokenized is not None
    assert both.manifest.retokenized.source_digests == tuple(part.store.digest for part in parts)
    assert [sequence.record_id for sequence in both.iter_sequences()] == ["a0", "b0"]


def test_the_deletions_of_the_source_are_those_of_the_mapping(
    tmp_path: Path, teacher: str, student: str
) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=8)
    (name, *rest) = [one.record_id for one in labels.store]
    delete_records(labels.store, frozenset([name]), "asked for")
    target = mapped(labels.store, teacher, student, tmp_path / "after")
    assert [one.record_id for one in target] == rest
    assert target.deletions.records == labels.store.deletions.records


def test_inspect_calls_nothing_unfinished_that_is_made_of_a_mapped_store(
    tmp_path: Path, teacher: str, student: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It advised to repeat `retokenize`, which would have refused the place, or written another store."""
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS[:1], top_k=9)
    target = mapped(labels.store, teacher, student, tmp_path / "out")
    merge_stores([target], str(tmp_path / "merged"))
    publish_store(target, Objects(tmp_path / "public"), CardSettings(), allow_paths=True)
    for name in ("merged", "public"):
        assert main(["inspect", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        assert "the store says that was retokenized" in said
        assert "not finished" not in said
    (tmp_path / "out" / "retokenized.json").unlink()
    assert main(["inspect", target.uri]) == 0
    assert "not finished: repeat `penumbra store retokenize`" in capsys.readouterr().out


def test_the_tokenizer_that_was_named_is_the_one_that_is_kept(
    tmp_path: Path, teacher: str, student: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a file of another name lay the teacher's tokenizer.json, and the store kept that one."""
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS[:1], top_k=9)
    named = Path(teacher, "for-student.json")
    named.write_bytes(Path(student, "tokenizer.json").read_bytes())
    target = mapped(labels.store, teacher, str(named), tmp_path / "out")
    assert choose_texts(target, None)[1] == ""
    assert choose_texts(target, None)[0].known


def test_a_mapping_without_room_is_refused_before_a_store_is_made(
    tmp_path: Path, teacher: str, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS[:1], top_k=9)
    monkeypatch.setattr("logitstore.objects.room.free_bytes", lambda _: 10)
    with pytest.raises(UnsupportedInputError, match=r"the mapping needs about .* 10 are free; make room, or"):
        mapped(labels.store, teacher, student, tmp_path / "out")
    assert not (tmp_path / "out").exists()
