"""Segments through every command that makes or mends a store: they travel, or a refusal says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitstore.__main__ import main
from logitstore.manifest.fields import SEGMENTS
from logitstore.records import LabeledSequence, Segment
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.logitstore.retokenize.tokenizers_made import (
    STUDENT_WORDS,
    TEACHER_WORDS,
    byte_level,
    label_texts,
)

TEXTS = [("the cat", " sat the hat"), ("a ", "cat sat the"), ("hat", " the cats sat")]
Spans = list[tuple[str, int]]
"""(segment, bytes of text) of each run."""


def with_segments(sequence: LabeledSequence) -> LabeledSequence:
    """The first half of the response is reasoning, the rest the answer, its last token an end."""
    total, start = len(sequence.token_ids_T), sequence.prompt_length
    segments_T = np.full(total, Segment.ANSWER, np.uint8)
    segments_T[:start] = Segment.CONTEXT
    segments_T[start : start + (total - start) // 2] = Segment.REASONING
    segments_T[-1] = Segment.END
    return replace(sequence, segments_T=segments_T)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stores of one teacher, `one` and `other`, whose every sequence has segments, and two tokenizers."""
    teacher = byte_level(tmp_path / "teacher", TEACHER_WORDS, special=["<end>"], eos="<end>")
    byte_level(tmp_path / "student", STUDENT_WORDS, special=["<stop>"], eos="<stop>", shuffle=5)
    for name, prefix in (("one", "r"), ("other", "s")):
        plain = label_texts(
            str(tmp_path / f"{name}-plain"), teacher, TEXTS, top_k=8, units=2, tail="<end>", prefix=prefix
        ).store
        manifest = plain.manifest
        labels = replace(manifest.labels, extra_columns=(SEGMENTS,))
        store = LogitStore.create(
            tmp_path / name, replace(manifest, labels=labels, features=(SEGMENTS,), codebooks=None)
        )
        for number, entry in enumerate(plain.shards()):
            sequences = [with_segments(one) for one in plain.open_shard(entry).iter_sequences()]
            store.commit_unit(f"u{number}", number, sequences, seconds=0.0, worker="test")
    return tmp_path


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def compact(folder: Path) -> Path:
    run("compact", folder / "one")
    return folder / "one"


def purge(folder: Path) -> Path:
    (folder / "ids").write_text("r1\n")
    run("delete", folder / "one", "--ids", folder / "ids", "--reason", "asked for")
    run("compact", folder / "one", "--purge")
    return folder / "one"


def copy(folder: Path) -> Path:
    run("copy", folder / "one", folder / "made")
    return folder / "made"


def merge(folder: Path) -> Path:
    run("merge", folder / "one", folder / "other", "--out", folder / "made")
    return folder / "made"


def merge_with_plain(folder: Path) -> Path:
    run("merge", folder / "one", folder / "other-plain", "--out", folder / "made")
    return folder / "made"


def mix(folder: Path) -> Path:
    run("mix", folder / "one", folder / "one-plain", "--out", folder / "made")
    return folder / "made"


def retokenize(folder: Path) -> Path:
    tokenizers = ("--tokenizer", folder / "student", "--teacher-tokenizer", folder / "teacher")
    run("retokenize", folder / "one", folder / "made", *tokenizers)
    return folder / "made"


def through(form: str) -> Callable[[Path], Path]:
    def there_and_back(folder: Path) -> Path:
        run("export", folder / "one", "--to", form, folder / f"labels.{form}")
        run("import", "--from", form, folder / f"labels.{form}", folder / "made")
        return folder / "made"

    return there_and_back


def expected(sequence: LabeledSequence) -> list[int]:
    found = with_segments(sequence).segments_T
    assert found is not None
    return found.tolist()


@pytest.mark.parametrize(
    ("make", "ids"),
    [
        (compact, ["r0", "r1", "r2"]),
        (purge, ["r0", "r2"]),
        (copy, ["r0", "r1", "r2"]),
        (merge, ["r0", "r1", "r2", "s0", "s1", "s2"]),
        (mix, ["r0", "r1", "r2"]),
        (through("parquet"), ["r0", "r1", "r2"]),
        (through("arrow"), ["r0", "r1", "r2"]),
        (through("jsonl"), ["r0", "r1", "r2"]),
    ],
    ids=["compact", "purge", "copy", "merge", "mix", "parquet", "arrow", "jsonl"],
)
def test_every_token_keeps_its_segment(folder: Path, make: Callable[[Path], Path], ids: list[str]) -> None:
    store = LogitStore.open(make(folder))
    sequences = sorted(store.iter_sequences(), key=lambda one: one.record_id)
    assert [one.record_id for one in sequences] == ids
    for one in sequences:
        assert one.segments_T is not None
        assert one.segments_T.tolist() == expected(one)
    assert SEGMENTS in store.manifest.features
    assert not verify_store(store).errors


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_table_that_lost_their_column_is_refused(
    folder: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tool that keeps the columns it knows loses it: all segments were unknown then, without a word."""
    assert main(["export", str(folder / "one"), "--to", "parquet", str(folder / "t.parquet")]) == 0
    table = pq.read_table(folder / "t.parquet").drop_columns([SEGMENTS])
    if form == "parquet":
        pq.write_table(table, folder / "less.parquet")
    else:
        with pa.ipc.new_file(folder / "less.arrow", table.schema) as writer:
            writer.write_table(table)
    assert main(["import", "--from", form, str(folder / f"less.{form}"), str(folder / "back")]) == 2
    assert (
        "has no column 'segments', which the store has that it was exported from" in capsys.readouterr().err
    )
    assert not (folder / "back").exists()


def test_a_merge_with_a_store_that_knows_none(folder: Path) -> None:
    store = LogitStore.open(merge_with_plain(folder))
    found = {one.record_id: one for one in store.iter_sequences()}
    assert sorted(found) == ["r0", "r1", "r2", "s0", "s1", "s2"]
    for name, one in found.items():
        segments = None if one.segments_T is None else one.segments_T.tolist()
        assert segments == (expected(one) if name.startswith("r") else None)
    assert not verify_store(store).errors


def test_another_tokenizer_keeps_where_the_segments_begin_in_the_text(folder: Path) -> None:
    """A token of the student is of the segment of the teacher's token in which it begins."""
    made = {one.record_id: one for one in LogitStore.open(retokenize(folder)).iter_sequences()}
    assert sorted(made) == ["r0", "r1", "r2"]
    num_cut = 0
    for source in LogitStore.open(folder / "one").iter_sequences():
        one = made[source.record_id]
        assert one.segments_T is not None
        assert source.segments_T is not None
        theirs, ours = pieces(folder / "teacher", source), pieces(folder / "student", one)
        segment_at = np.repeat(source.segments_T, [len(piece) for piece in theirs])
        begins = np.cumsum([0, *(len(piece) for piece in ours)])[:-1]
        assert one.segments_T.tolist() == segment_at[begins].tolist()
        num_cut += theirs != ours
    assert num_cut == 3, "each text is cut otherwise by the student"
    assert not verify_store(LogitStore.open(folder / "made")).errors


def pieces(tokenizer: Path, sequence: LabeledSequence) -> list[str]:
    """Each token as it is written, one sign a byte; a special token is one sign."""
    from tokenizers import Tokenizer

    read = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    written = [str(read.id_to_token(token)) for token in sequence.token_ids_T.tolist()]
    return ["$" if piece in ("<end>", "<stop>") else piece for piece in written]


def test_a_capture_says_that_it_leaves_them_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", folder / "one", "--to", "npz", folder / "labels.npz")
    assert "left out here: tokens before the context of a first row (4), segments of sequences (3)" in (
        capsys.readouterr().err
    )
    run("import", "--from", "npz", folder / "labels.npz", folder / "made")
    made = list(LogitStore.open(folder / "made").iter_sequences())
    before = list(LogitStore.open(folder / "one").iter_sequences())
    assert [one.segments_T for one in made] == [None] * 3
    assert [one.rows.token_ids_NK.tolist() for one in made] == [
        one.rows.token_ids_NK.tolist() for one in before
    ]


def test_text_without_a_chat_template_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reasoning cannot be told apart there as a message has it, and is refused in words where it must be."""
    words = ("--tokenizer", folder / "teacher")
    run("export", folder / "one", "--to", "prompt-completion", folder / "text.jsonl", *words)
    lines = [json.loads(line) for line in (folder / "text.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["completion"]) for line in lines] == TEXTS
    messages = ["export", folder / "one", "--to", "messages", folder / "m.jsonl", *words]
    assert main([str(word) for word in messages]) == 2
    assert "keeps no chat template" in capsys.readouterr().err
