"""What the part `retokenized` makes of its students, and how the start takes over the teacher's embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.demo.prompted import Student
from benchmarks.demo.retokenized import JOB_FILE, MEASURES, TRAIN_FILE, Written, result_of
from benchmarks.demo.retokenized_start import teacher_ids
from benchmarks.report.results_page import write_page
from labeler.config.loading import load_job
from logitstore.retokenize.report import Report
from logitstore.retokenize.tokenization import load_tokenization
from tests.logitstore.retokenize.tokenizers_made import byte_level
from trainer.run.config import load_config

CONFIGS = Path(__file__).parents[3] / "configs"
BEFORE = Student(kl=4.0, top1_agreement=0.3, acceptance_at_least=0.6, num_sequences=3, num_rows=90)


def gaps(student: float) -> dict[str, dict[str, Any]]:
    return {measure: {"teacher": 1.0, "student": student, "num_items": 7} for measure in MEASURES}


def test_the_result_compares_labels_with_the_text_alone(tmp_path: Path) -> None:
    students = {
        "before": Written(BEFORE, gaps(4.0)),
        "labels": Written(replace(BEFORE, kl=1.0), gaps(1.5)),
        "text alone": Written(replace(BEFORE, kl=2.0), gaps(2.5)),
    }
    result = result_of(students, Report(num_rows=100, num_kept=95))
    figures = {figure.name: figure.value for figure in result.figures}
    assert (figures["kl_labels"], figures["kl_text_alone"], figures["kl_before"]) == (1.0, 2.0, 4.0)
    assert (figures["bits_per_byte_labels"], figures["repetition_text_alone"]) == (1.5, 2.5)
    assert (figures["bits_per_byte_teacher"], figures["rows_kept"]) == (1.0, 0.95)
    assert figures["kl_labels_over_text_alone"] == 0.5
    assert figures["bits_per_byte_labels_over_text_alone"] == pytest.approx(0.6)
    assert "1 nats from the teacher's mapped rows on its labels and 2 on the text alone" in result.meaning
    write_page({"retokenized": result}, (), tmp_path, tmp_path / "RESULTS.md")
    assert '<a id="retokenized.kl_labels"></a>kl_labels | 1 | nats' in (tmp_path / "RESULTS.md").read_text()


def test_a_piece_is_the_teachers_token_or_what_it_would_write(tmp_path: Path) -> None:
    teacher = load_tokenization(byte_level(tmp_path / "t", ["ca", "cat", "th"], special=["<end>"]))
    student = load_tokenization(
        byte_level(tmp_path / "s", ["th", "the", "cat"[:2], "cat"], special=["<end>"])
    )
    found = teacher_ids(teacher, student)
    assert len(found) == student.vocab_size
    for own, theirs in enumerate(found):
        raw = student.bytes_by_id[own]
        if len(raw) < 2 and raw >= b"\x80":
            continue  # no text of its own: the teacher writes it as a byte where it has one
        assert b"".join(teacher.bytes_by_id[one] for one in theirs) == raw
    by_text = {student.bytes_by_id[own]: theirs for own, theirs in enumerate(found)}
    assert [len(by_text[text]) for text in (b"cat", b"the", b"<end>")] == [1, 2, 1]


def test_the_student_trains_on_the_demos_labels_as_they_are_mapped() -> None:
    job, train = load_job(str(CONFIGS / JOB_FILE), environ={}), load_config(str(CONFIGS / TRAIN_FILE))
    (store,) = train.data.stores
    assert store.uri != job.output.uri
    assert Path(store.uri).parent == Path(str(train.student.model)).parent == Path(train.output.folder).parent
    assert train.loss.alpha == 1.0
