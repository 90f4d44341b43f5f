"""What the part `prompted` makes of the metrics of two students and of a store with two prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import suite
from benchmarks.demo.prompted import JOB_FILE, TRAIN_FILE, Student, prompt_lengths, result_of, students_of
from benchmarks.report.results import load_all
from benchmarks.report.results_page import write_page
from labeler.config.loading import load_job
from logitstore.manifest.fields import STUDENT_PROMPTS
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence
from trainer.run.config import load_config

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
BEFORE = Student(kl=0.4, top1_agreement=0.7, acceptance_at_least=0.6, num_sequences=3, num_rows=90)
AFTER = replace(BEFORE, kl=0.1, top1_agreement=0.9, acceptance_at_least=0.8)


def test_the_result_says_both_students_and_what_the_prompt_cost() -> None:
    result = result_of(BEFORE, AFTER, (1000.0, 40.0))
    figures = {figure.name: figure.value for figure in result.figures}
    assert figures["kl_after_over_before"] == pytest.approx(0.25)
    assert (figures["kl_before"], figures["agreement_after"], figures["acceptance_after"]) == (0.4, 0.9, 0.8)
    assert "0.4 nats" in result.meaning
    assert "40 prompt tokens for 1000" in result.meaning


def test_the_page_has_its_section_though_the_whole_does_not_measure_it(tmp_path: Path) -> None:
    result = result_of(BEFORE, AFTER, (1000.0, 40.0))
    write_page({"prompted": result}, (), tmp_path, tmp_path / "RESULTS.md")
    assert '<a id="prompted.kl_after"></a>kl_after | 0.1 | nats' in (tmp_path / "RESULTS.md").read_text()


def test_the_committed_page_is_what_its_writer_makes_of_the_committed_results(tmp_path: Path) -> None:
    results = load_all(ROOT / "benchmarks" / "results")
    assert "prompted" in results
    write_page(results, suite.PARTS, tmp_path / "results", tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "benchmarks" / "RESULTS.md").read_text()


def test_both_students_are_those_of_the_runs_metrics(tmp_path: Path) -> None:
    written = {
        when: {**{name: getattr(one, name) for name in Student.__slots__}, "cross_entropy": 1.0}
        for when, one in (("before", BEFORE), ("after", AFTER))
    }
    (tmp_path / "metrics.json").write_text(json.dumps({**written, "train_seconds": 1.0}))
    assert students_of(tmp_path) == (BEFORE, AFTER)


def test_prompts_of_both_are_counted(tmp_path: Path) -> None:
    manifest = make_manifest()
    labels = replace(manifest.labels, extra_columns=(STUDENT_PROMPTS,))
    store = LogitStore.create(tmp_path / "s", replace(manifest, labels=labels, features=(STUDENT_PROMPTS,)))
    sequences = [
        replace(
            make_sequence(str(length)), prompt_length=1, student_prompt_ids=np.arange(length, dtype=np.int32)
        )
        for length in (2, 4)
    ]
    store.commit_unit("u", 0, sequences, seconds=0.0, worker="test")
    assert prompt_lengths(store) == (1.0, 3.0)


def test_the_student_trains_on_what_the_teacher_labels_with_a_prompt_it_does_not_see() -> None:
    job, train = load_job(str(CONFIGS / JOB_FILE), environ={}), load_config(str(CONFIGS / TRAIN_FILE))
    assert [store.uri for store in train.data.stores] == [job.output.uri]
    assert job.input.student_system_prompt == ""
    assert job.input.system_prompt
    assert train.student.model == job.teacher.model
