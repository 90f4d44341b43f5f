"""A job with the real engine: two actors on Ray, one of them killed in the middle."""

import json
import os
import signal
from pathlib import Path

import pytest

from logitstore.store import LogitStore
from tests.labeler.jobs import assert_exactly_once, overrides_for, started, units_done, wait_for

TEACHER = Path(__file__).parents[2] / ".demo" / "teacher"
RECORDS = 24
pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not TEACHER.exists(), reason="no demo teacher in .demo/teacher; `make setup` makes it"
    ),
]


def test_a_killed_engine_is_replaced_and_every_record_has_its_labels_once(tmp_path):
    with (tmp_path / "in.jsonl").open("w") as file:
        for i in range(RECORDS):
            question = f"Tom has {i + 3} apples and eats {i % 3 + 1}. How many are left?"
            answer = f"He had {i + 3} and ate {i % 3 + 1}, so {i + 3 - (i % 3 + 1)} apples are left."
            file.write(json.dumps({"uid": str(i), "prompt": question, "response": answer}) + "\n")
    vllm = (
        "teacher.engine=vllm",
        f"teacher.model='{TEACHER}'",
        "labels.top_k=16",
        "teacher.max_model_len=256",
    )
    store = tmp_path / "store"
    with started(overrides_for(tmp_path, *vllm, "output.unit_size=2")) as job:
        wait_for(lambda: units_done(store) >= 2, job, timeout_sec=240)
        os.kill(job.actors()[0], signal.SIGKILL)
        exit_status, output = job.finish(timeout_sec=240)
    assert exit_status == 0, output
    assert "1 engine_died" in output
    assert_exactly_once(tmp_path, RECORDS)
    manifest = LogitStore.open(store).manifest
    assert (manifest.teacher.engine, manifest.teacher.capture) == ("vllm", "in_engine")
    assert manifest.labels.temperatures == (1.0, 2.0, 4.0)
    for sequence in LogitStore.open(store).iter_sequences():
        assert sequence.rows.num_rows == len(sequence.token_ids_T) - sequence.prompt_length
        # The answers follow from the questions, so a model that reads them finds them likely.
        assert sequence.rows.label_logprob_N.mean() > -3
