"""What the demo's report says of its students, against models and rows that are at hand."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.demo.answers import SEED, TEMPERATURE, read_answers
from benchmarks.demo.demo import kl_curve
from logitstore.store import LogitStore
from logitstore.students.snapshots import FollowedSequence, Snapshots, StudentRows, write_snapshots
from tests.trainer.stores import TEMPERATURES, make_store
from tests.trainer.students import tiny_student


def followed_in(store: LogitStore, records: list[str], folder: Path) -> Snapshots:
    """Two snapshots: the rows of another record of the same length, then the teacher's own."""
    sequences = []
    for record_id in records:
        rows = store[record_id].rows
        other = replace(rows, logits_NK=rows.logits_NK / 2, logsumexp_NM=rows.logsumexp_NM + 1)
        nothing_N = np.zeros(rows.num_rows, np.int32)
        taken = tuple(StudentRows(one, nothing_N, nothing_N.astype(np.float32)) for one in (other, rows))
        sequences.append(FollowedSequence(store.uri, record_id, 0, TEMPERATURES, 64, taken))
    snapshots = Snapshots((0, 4), tuple(sequences))
    write_snapshots(snapshots, folder)
    return snapshots


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    return make_store(tmp_path / "store", (6,), lengths=(12, 20))


@pytest.mark.slow
def test_answers_are_drawn_after_the_stored_prompt_with_one_seed(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the store is named as in the demo, and by its whole path in snapshots
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        student = tiny_student(seed=seed)
        assert student.generation_config is not None
        student.generation_config.suppress_tokens = list(range(48))  # its own settings do not count
        student.save_pretrained(folder)
    records = [one.record_id for one in store if one.prompt_length][:2]
    followed_in(store, records, folders[0])
    out = tmp_path / "answers.json"
    arguments = ["answers", "store", "--students", *map(str, folders), "--followed", str(folders[0])]
    assert main([*arguments, "--tokens", "5", "--out", str(out)]) == 0
    found = read_answers(out)
    assert [one.record_id for one in found] == records
    for one in found:
        sequence = store[one.record_id]
        prompt = sequence.token_ids_T[: sequence.prompt_length].tolist()
        teacher = sequence.token_ids_T[sequence.prompt_length :][:5].tolist()
        assert one.teacher == "".join(f"⟨{token}⟩" for token in teacher)
        for seed, said in enumerate(one.students):
            ids, student = list(prompt), tiny_student(seed=seed).eval()
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(SEED)
                for _ in range(5):
                    logits = student(torch.tensor([ids])).logits[:, -1]
                    ids.append(int(torch.multinomial((logits / TEMPERATURE).softmax(-1), 1)))
            assert said == "".join(f"⟨{token}⟩" for token in ids[len(prompt) :])
    # Given again, nothing is made again, whatever the clock says.
    document = json.loads(out.read_text())
    out.write_text(json.dumps({**document, "answers": []}))
    os.utime(folders[1] / "model.safetensors", None)
    assert main([*arguments, "--tokens", "5", "--out", str(out)]) == 0
    assert read_answers(out) == ()
    # Of other tokens, students and records they are others; also where a student's files are older.
    assert main([*arguments, "--tokens", "3", "--out", str(out)]) == 0
    assert [one.record_id for one in read_answers(out)] == records
    fewer = ["answers", "store", "--students", str(folders[1]), "--followed", str(folders[0])]
    assert main([*fewer, "--tokens", "3", "--out", str(out)]) == 0
    assert [len(one.students) for one in read_answers(out)] == [1, 1]
    followed_in(store, records[:1], folders[0])
    assert main([*fewer, "--tokens", "3", "--out", str(out)]) == 0
    (said,) = read_answers(out)
    out.write_text(json.dumps({**json.loads(out.read_text()), "answers": []}))
    tiny_student(seed=7).save_pretrained(folders[1])
    os.utime(folders[1] / "model.safetensors", (1, 1))
    assert main([*fewer, "--tokens", "3", "--out", str(out)]) == 0
    assert [one.record_id for one in read_answers(out)] == [said.record_id]


def test_the_curve_is_the_kl_of_the_rows(store: LogitStore, tmp_path: Path) -> None:
    records = [one.record_id for one in store][:3]
    snapshots = followed_in(store, records, tmp_path)
    (first_step, first), (last_step, last) = kl_curve(tmp_path)
    assert (first_step, last_step) == (0, 4)
    assert last == pytest.approx(0, abs=1e-6)
    values = []
    for one in snapshots.sequences:
        teacher, student = store[one.record_id].rows, one.snapshots[0].rows
        for row in range(teacher.num_rows):
            p = np.exp(teacher.logits_NK[row].astype(float) - teacher.logsumexp_NM[row, 0])
            log_q = student.logits_NK[row].astype(float) - student.logsumexp_NM[row, 0]
            tails = teacher.log_tail_mass_NM[row, 0], student.log_tail_mass_NM[row, 0]
            tail = float(np.exp(tails[0])) * float(tails[0] - tails[1]) if np.isfinite(tails[0]) else 0.0
            values.append(float((p * (np.log(p) - log_q)).sum()) + tail)
    assert first == pytest.approx(np.mean(values), abs=1e-5)
