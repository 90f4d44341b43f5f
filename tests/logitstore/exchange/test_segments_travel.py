"""Segments through every command that makes or mends a store: they travel, or a refusal says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitstore.__main__ import main
from logitstore.manifest.fields import SEGMENTS
from logitstore.records import SEGMENT_NAMES, LabeledSequence, Segment
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


def test_a_merge_with_a_store_that_knows_none(folder: Path) -> None:
    store = LogitStore.open(merge_with_plain(folder))
    found = {one.record_id: one for one in store.iter_sequences()}
    for name, one in found.items():
        segments = None if one.segments_T is None else one.segments_T.tolist()
        assert segments == (expected(one) if name.startswith("r") else None)
    assert not verify_store(store).errors


def test_another_tokenizer_keeps_where_the_segments_begin_in_the_text(folder: Path) -> None:
    from tokenizers import Tokenizer

    made = LogitStore.open(retokenize(folder))
    sources = {one.record_id: one for one in LogitStore.open(folder / "one").iter_sequences()}
    left, right = (
        Tokenizer.from_file(str(folder / name / "tokenizer.json")) for name in ("teacher", "student")
    )
    for one in made.iter_sequences():
        source = sources[one.record_id]
        assert one.segments_T is not None
        assert source.segments_T is not None
        for number in (Segment.CONTEXT, Segment.REASONING, Segment.ANSWER, Segment.END):
            theirs = [int(i) for i in source.token_ids_T[source.segments_T == number]]
            ours = [int(i) for i in one.token_ids_T[one.segments_T == number]]
            texts = left.decode(theirs), right.decode(ours)
            assert abs(len(texts[0]) - len(texts[1])) <= 4, (SEGMENT_NAMES[number], texts)
        assert one.segments_T.tolist() == sorted(one.segments_T.tolist()), "in the order of the source"
        assert one.segments_T[-1] == Segment.END
    assert not verify_store(made).errors


def test_a_capture_says_that_it_leaves_them_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", folder / "one", "--to", "npz", folder / "labels.npz")
    assert "labels.npz holds no segments" in capsys.readouterr().err


def test_text_has_the_reasoning_apart_or_is_plain(folder: Path) -> None:
    words = ("--tokenizer", folder / "teacher")
    run("export", folder / "one", "--to", "prompt-completion", folder / "text.jsonl", *words)
    lines = [json.loads(line) for line in (folder / "text.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == [response for _, response in TEXTS]
