"""`penumbra store retokenize`: every row's exact distribution, worked out again from whole logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from logitstore.__main__ import main
from logitstore.errors import (
    StoreChangedError,
    UnsupportedInputError,
)
from logitstore.manifest.fields import SEGMENTS
from logitstore.manifest.turns import masks_tell_turns
from logitstore.records import LabeledSequence, Segment
from logitstore.retokenize.report import Report, read_report
from logitstore.retokenize.store_mapping import retokenize_store
from logitstore.retokenize.tokenization import load_tokenization
from logitstore.rows.temperature import log_tail_mass
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.conftest import Place
from tests.logitstore.retokenize.expected import expected_rows, load_table
from tests.logitstore.retokenize.tokenizers_made import (
    STUDENT_WORDS,
    TEACHER_WORDS,
    TEXTS,
    byte_level,
    label_texts,
    mapped,
    sentence_piece,
)


def test_every_row_has_the_distribution_worked_out_from_whole_logits(
    tmp_path: Path, teacher: str, student: str
) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=40, units=2, tail="<end>")
    target = mapped(labels.store, teacher, student, tmp_path / "out")
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    assert not verify_store(target).errors
    num_rows = num_masked = 0
    for source, found in zip(labels.store.iter_sequences(), target.iter_sequences(), strict=True):
        student_ids, rows = expected_rows(labels, source, tokenizer, 40)
        assert found.token_ids_T.tolist() == student_ids
        assert (found.record_id, found.flags, found.finish_reason) == (
            source.record_id,
            source.flags,
            source.finish_reason,
        )
        assert found.label_start == len(student_ids) - len(rows)
        for place, row in enumerate(rows):
            num_rows += 1
            if row is None:
                num_masked += 1
                assert not found.loss_mask_N[place]
                assert np.isnan(found.rows.label_logprob_N[place])
                continue
            assert found.loss_mask_N[place]
            count = found.rows.count_N[place]
            ids, logits = found.rows.token_ids_NK[place, :count], found.rows.logits_NK[place, :count]
            assert dict(zip(ids.tolist(), logits.tolist(), strict=True)) == pytest.approx(row["entries"])
            assert found.rows.logsumexp_NM[place] == pytest.approx(row["logsumexp"], abs=1e-4)
            tail = found.rows.log_tail_mass_NM[place] + found.rows.logsumexp_NM[place]
            assert tail == pytest.approx(row["tail"], abs=2e-3)
            label = row["label"]
            if label in row["entries"]:
                logprob = row["entries"][label] - row["logsumexp"][0]
                assert found.rows.label_logprob_N[place] == pytest.approx(logprob, abs=1e-3)
                above = sum(logit >= row["entries"][label] for logit in row["entries"].values())
                assert found.rows.label_rank_N[place] == above
            else:
                assert found.rows.label_rank_N[place] == 0
    assert num_masked > 2
    assert num_rows - num_masked > 20


def answer_segments(sequence: LabeledSequence) -> np.ndarray:
    is_prompt_T = np.arange(len(sequence.token_ids_T)) < sequence.prompt_length
    return np.where(is_prompt_T, Segment.CONTEXT, Segment.ANSWER).astype(np.uint8)


def test_turns_that_lost_rows_are_told_apart_by_segments_alone(
    tmp_path: Path, teacher: str, student: str
) -> None:
    """All that follows the first prompt passed for the answer: rows that are lost are holes of the mask too."""
    labels = label_texts(str(tmp_path / "base"), teacher, TEXTS, top_k=40, tail="<end>")
    base, turns = labels.store.manifest, {"labels": {"turns": "all"}}
    for name, columns in (("masks", ()), ("segments", (SEGMENTS,))):
        manifest = replace(
            base, config=turns, labels=replace(base.labels, extra_columns=columns), features=columns
        )
        store = LogitStore.create(tmp_path / name, manifest)
        sequences = [
            replace(one, segments_T=answer_segments(one) if columns else None)
            for one in labels.store.iter_sequences()
        ]
        store.commit_unit("u", 0, sequences, seconds=0.0, worker="w")
        assert masks_tell_turns(store.manifest)
        target = mapped(store, teacher, student, tmp_path / f"{name}-mapped")
        if columns:
            assert not masks_tell_turns(target.manifest)
        else:
            with pytest.raises(UnsupportedInputError, match="give the store that it was mapped from"):
                masks_tell_turns(target.manifest)


def test_tails_between_stored_temperatures_count_the_teachers_ids(
    tmp_path: Path, teacher: str, student: str
) -> None:
    """The free knot is the teacher's vocabulary: the student's would move the tail at T=3."""
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=40, tail="<end>")
    target, _ = retokenize_store(
        labels.store,
        str(tmp_path / "out"),
        teacher=load_tokenization(teacher),
        student=load_tokenization(student, vocab_size=9000),
    )
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    spec = target.manifest.labels
    assert spec.vocab_size == 9000
    assert spec.num_outcomes == labels.tokenizer.get_vocab_size()
    for source, found in zip(labels.store.iter_sequences(), target.iter_sequences(), strict=True):
        _, rows = expected_rows(labels, source, tokenizer, 40)
        theirs = load_table(labels.tokenizer)
        tail_N = log_tail_mass(found.rows, spec, 50.0)
        for place, row in enumerate(rows):
            if row is not None:
                number_outside = len(theirs) - len(row["entries"])
                assert np.exp(tail_N[place]) == pytest.approx(number_outside / len(theirs), abs=0.02)


def test_a_store_goes_to_an_equal_vocabulary_and_back_unchanged(tmp_path: Path, teacher: str) -> None:
    """K = V: ids in another order and back again give the same rows, bit by bit."""
    other = byte_level(
        tmp_path / "other", TEACHER_WORDS, special=["<end>", "<only-teacher>"], eos="<end>", shuffle=3
    )
    size = load_tokenization(teacher).vocab_size
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=size, tail="<end>")
    there = mapped(labels.store, teacher, other, tmp_path / "there")
    back = mapped(there, other, teacher, tmp_path / "back")
    report = read_report(there)
    assert report is not None
    assert report.num_kept == report.num_rows == report.num_known_labels
    assert report.mass_kept == report.mass_stored
    for source, found in zip(labels.store.iter_sequences(), back.iter_sequences(), strict=True):
        assert found.token_ids_T.tolist() == source.token_ids_T.tolist()
        assert found.loss_mask_N.all()
        for name in ("logits_NK", "logsumexp_NM", "log_tail_mass_NM", "count_N", "label_rank_N"):
            np.testing.assert_array_equal(getattr(found.rows, name), getattr(source.rows, name), name)
        np.testing.assert_allclose(found.rows.label_logprob_N, source.rows.label_logprob_N, atol=1e-6)
        for row in range(source.rows.num_rows):
            pairs = [
                sorted(zip(rows.logits_NK[row].tolist(), rows.token_ids_NK[row].tolist(), strict=True))
                for rows in (source.rows, found.rows)
            ]
            assert pairs[0] == pairs[1]


def test_a_merged_span_has_the_product_of_its_tokens(tmp_path: Path) -> None:
    teacher = byte_level(tmp_path / "teacher", ["ca"])
    student = byte_level(tmp_path / "student", ["ca", "cat"])
    labels = label_texts(str(tmp_path / "store"), teacher, [("x", "cat")], top_k=250)
    target = mapped(labels.store, teacher, student, tmp_path / "out", merge_spans=True)
    (source,) = labels.store.iter_sequences()
    (found,) = target.iter_sequences()
    assert not verify_store(target).errors
    table = Tokenizer.from_file(f"{student}/tokenizer.json")
    assert found.token_ids_T.tolist() == [table.token_to_id("x"), table.token_to_id("cat")]
    product = float(np.exp(source.rows.label_logprob_N.sum()))
    first = float(np.exp(source.rows.label_logprob_N[0]))
    count = int(found.rows.count_N[0])
    lse = found.rows.logsumexp_NM[0]
    entries = dict(
        zip(
            found.rows.token_ids_NK[0, :count].tolist(), found.rows.logits_NK[0, :count].tolist(), strict=True
        )
    )
    assert np.exp(entries[table.token_to_id("cat")] - lse[0]) == pytest.approx(product, rel=5e-3)
    assert np.exp(entries[table.token_to_id("ca")] - lse[0]) == pytest.approx(first - product, rel=5e-3)
    assert found.rows.label_logprob_N[0] == pytest.approx(np.log(product), abs=1e-2)
    assert lse[0] == pytest.approx(source.rows.logsumexp_NM[0, 0], abs=1e-4)
    # At T=2 the masses are those of a teacher with these logits.
    logits_V = labels.logits_by_record["r0"][0]
    others = np.delete(logits_V, int(labels.tokenizer.token_to_id("ca") or 0))
    whole = np.append(others, [entries[table.token_to_id("cat")], entries[table.token_to_id("ca")]])
    assert lse[1] == pytest.approx(np.logaddexp.reduce(whole / 2), abs=2e-3)


def test_a_sentence_piece_student_reads_the_text_that_a_byte_level_teacher_wrote(
    tmp_path: Path, teacher: str
) -> None:
    student = sentence_piece(tmp_path / "pieces", [" s", "at", " sat", "th", "the", " the"])
    labels = label_texts(str(tmp_path / "store"), teacher, [("the ", "hat sat"), ("the", " thé")], top_k=40)
    target = mapped(labels.store, teacher, student, tmp_path / "out")
    assert not verify_store(target).errors
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    first, second = target.iter_sequences()
    pieces = [tokenizer.id_to_token(i) for i in first.token_ids_T.tolist()]
    assert pieces == ["▁the", "▁", "h", "at", "▁sat"]
    # The response goes on the prompt: no space of the tokenizer's own stands before it.
    assert first.loss_mask_N.tolist() == [True, True, True]
    source, _ = labels.store.iter_sequences()
    by_bytes = {raw: i for i, raw in load_table(labels.tokenizer).items()}
    best = labels.logits_by_record["r0"][0][by_bytes[b"s"]]
    place = first.rows.token_ids_NK[0].tolist()
    known = dict(zip(place, first.rows.logits_NK[0].tolist(), strict=True))
    ident = tokenizer.token_to_id("s")
    assert (ident in known) == (best >= np.sort(labels.logits_by_record["r0"][0])[-40])
    assert b"\xc3" in [
        bytes.fromhex(str(tokenizer.id_to_token(i))[3:5]) for i in second.token_ids_T.tolist() if i < 256
    ]
    assert source.record_id == first.record_id


def test_a_tokenizer_that_changes_the_text_leaves_the_sequence_out(tmp_path: Path, teacher: str) -> None:
    from tokenizers import normalizers

    student = byte_level(tmp_path / "lower", STUDENT_WORDS)
    tokenizer = Tokenizer.from_file(f"{student}/tokenizer.json")
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(f"{student}/tokenizer.json")
    labels = label_texts(str(tmp_path / "store"), teacher, [("the", " Cat"), ("the", " cat")], top_k=9)
    target = mapped(labels.store, teacher, student, tmp_path / "out")
    (reject,) = target.rejects()
    assert (reject.record_id, reject.kind) == ("r0", "changed_text")
    assert [sequence.record_id for sequence in target.iter_sequences()] == ["r1"]
    report = read_report(target)
    assert report is not None
    assert (report.num_sequences, report.num_rejects) == (1, 1)


def test_a_student_for_whom_nothing_is_left_is_a_failure(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    only = tmp_path / "only"
    only.mkdir()
    Tokenizer(models.WordLevel({"zz": 0, "[U]": 1}, unk_token="[U]")).save(str(only / "tokenizer.json"))
    labels = label_texts(str(tmp_path / "store"), teacher, [("the", " cat")], top_k=9)
    assert main(["retokenize", labels.store.uri, str(tmp_path / "out"), "--tokenizer", str(only)]) == 1
    told = capsys.readouterr()
    assert "0 of " in told.out
    assert "no label row is left for this student; for example the student's tokenizer writes" in told.err


def test_an_interrupted_command_goes_on_and_ends_alike(
    place: Place, tmp_path: Path, teacher: str, student: str
) -> None:
    labels = label_texts(
        place.uri, teacher, TEXTS, top_k=9, units=3, tail="<end>", storage_options=place.storage_options
    )
    left, right = load_tokenization(teacher), load_tokenization(student)
    whole, report = retokenize_store(labels.store, str(tmp_path / "whole"), teacher=left, student=right)
    out = f"{place.uri}-out"
    commits = 0
    commit = LogitStore.commit_unit

    def dying(self: LogitStore, *args: object, **options: object) -> object:
        nonlocal commits
        commits += 1
        if commits == 2:
            raise KeyboardInterrupt
        return commit(self, *args, **options)  # type: ignore[arg-type]

    def run() -> tuple[LogitStore, Report]:
        return retokenize_store(
            labels.store, out, teacher=left, student=right, storage_options=place.storage_options
        )

    with mock.patch.object(LogitStore, "commit_unit", dying), pytest.raises(KeyboardInterrupt):
        run()
    begun = LogitStore.open(out, storage_options=place.storage_options)
    assert len(begun.shards()) == 1
    assert read_report(begun) is None
    with mock.patch.object(LogitStore, "commit_unit", autospec=True, side_effect=commit) as committed:
        _, again = run()
    assert committed.call_count == 2
    assert again == report
    done = LogitStore.open(out, storage_options=place.storage_options)
    assert [entry.checksum for entry in done.shards()] == [entry.checksum for entry in whole.shards()]
    assert read_report(done) == report
    assert not verify_store(done).errors


def test_another_map_of_tokens_is_not_mixed_into_a_store(tmp_path: Path, teacher: str, student: str) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=9, tail="<end>")
    mapped(labels.store, teacher, student, tmp_path / "out")
    (Path(teacher) / "tokenizer_config.json").unlink()  # the ends are not known to be equal any more
    with pytest.raises(StoreChangedError, match="would be"):
        mapped(labels.store, teacher, student, tmp_path / "out")


def test_special_tokens_that_the_student_lacks_are_told_and_can_be_named(
    tmp_path: Path, teacher: str, student: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = label_texts(str(tmp_path / "store"), teacher, TEXTS, top_k=9, tail="<only-teacher>")
    out = str(tmp_path / "out")
    assert main(["retokenize", labels.store.uri, out, "--tokenizer", student, "--quiet", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["unequal_tokens"] == {"<only-teacher>": len(TEXTS)}
    named = [*("--token", "<only-teacher>=<stop>"), "--json", "--quiet"]
    assert main(["retokenize", labels.store.uri, f"{out}-2", "--tokenizer", student, *named]) == 0
    assert json.loads(capsys.readouterr().out)["unequal_tokens"] == {}
    for sequence in LogitStore.open(f"{out}-2").iter_sequences():
        assert sequence.token_ids_T[-1] == Tokenizer.from_file(f"{student}/tokenizer.json").token_to_id(
            "<stop>"
        )
    for wrong, rule in (("<nothing>=<stop>", "no added token"), ("<end>", "TEACHER=STUDENT")):
        assert (
            main(["retokenize", labels.store.uri, f"{out}-3", "--tokenizer", student, "--token", wrong]) == 2
        )
        assert rule in capsys.readouterr().err
