"""Two real processes over gloo: accelerate's ways to divide data again, and training that equals one process."""

from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import NUM_SEQUENCES
from tests.trainer.hf.large.processes import run_processes
from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.checkpoints import last_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def seen(small_store, tmp_path_factory):
    """What each of two processes saw, and the folder where they trained."""
    folder = tmp_path_factory.mktemp("two")
    found, _ = run_processes(
        "tests.trainer.hf.two_processes",
        str(small_store),
        folder=folder,
        environment={"ACCELERATE_USE_CPU": "true"},
    )
    return found, folder


def reference(store):
    reader = StreamingLogitDataset(store, batch_size=3, num_splits=3, seed=1)
    return [int(sample.sequence.record_id[1:]) for sample in reader]


def test_rank_comes_from_the_launcher(seen):
    assert [rank["launched"] for rank in seen[0]] == [[0, 2], [1, 2]]


def test_sharded_weights_get_the_gradients_of_whole_ones(seen):
    """A DTensor head, FSDP2 around the whole model, and FSDP2 around the head alone."""
    for rank in seen[0]:
        assert set(rank["sharded"]) == {"weight", "root", "head"}
        assert max(rank["sharded"].values()) < 1e-5


def test_dividing_divided_data_again_is_refused_not_silent(seen):
    ranks, _ = seen
    for rank in ranks:
        for name in ("shard", "split"):
            assert "IterableDatasetShard divides this dataset among processes" in rank[name]
        for name in ("dispatch", "dispatch, worker"):
            assert "DataLoaderDispatcher divides this dataset among processes" in rank[name]


def test_our_loader_is_left_alone_by_accelerate(seen, small_store):
    (first, second), _ = seen
    line = [
        record
        for left, right in zip(first["ours"], second["ours"], strict=True)
        for record in (*left, *right)
    ]
    assert line == reference(small_store)
    assert sorted(line) == list(range(NUM_SEQUENCES))


def test_accelerate_may_divide_what_is_not_divided(seen, small_store):
    (first, second), _ = seen
    line = [
        record
        for pair in zip(first["undivided"], second["undivided"], strict=True)
        for part in pair
        for record in part
    ]
    assert line[:NUM_SEQUENCES] == reference(small_store)


def test_processes_that_would_take_unequal_steps_are_refused(seen):
    assert all("construct the dataset with even=True" in rank["uneven"] for rank in seen[0])


def test_two_processes_train_as_one(seen, small_store, tmp_path):
    (first, second), _ = seen
    assert first["weights"] == second["weights"]
    alone = tiny_trainer(small_store, tmp_path, batch_size=4, max_steps=9)
    evaluation = alone.evaluate()
    alone.train()
    expected = weights(alone.model)
    assert torch.allclose(torch.tensor(first["weights"]), expected, atol=2e-5)
    assert torch.allclose(torch.tensor(first["accumulated"]), expected, atol=2e-5)
    history = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert first["history"] == pytest.approx(history, rel=1e-3)
    assert first["kl"] == pytest.approx(evaluation["eval_kl"], rel=1e-4)
    assert first["num_rows"] == evaluation["eval_num_rows"]
    assert first["num_sequences"] == evaluation["eval_num_sequences"]


def test_one_process_goes_on_where_two_stopped(seen, small_store, tmp_path):
    (first, _), folder = seen
    alone = tiny_trainer(small_store, tmp_path, model=tiny_student(seed=5), batch_size=4, max_steps=9)
    alone.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-5"))
    assert torch.allclose(torch.tensor(first["weights"]), weights(alone.model), atol=2e-5)


def test_two_processes_resumed_drop_out_what_the_unbroken_ones_do(seen):
    for rank in seen[0]:
        assert rank["resumed"] == rank["dropped"]


def test_all_stop_after_one_step_where_one_is_asked_to(seen):
    ranks, folder = seen
    for rank in ranks:
        assert rank["stopped"].startswith("stopped by SIGTERM after step 2 of 9")
    assert last_checkpoint(folder / "stop") == str(folder / "stop" / "checkpoint-2")


def test_processes_that_see_other_checkpoints_are_refused(seen):
    """As where each machine has an output folder of its own; they trained on, each from its place."""
    for rank, steps in zip(seen[0], (0, 5), strict=True):
        assert f"this one after {steps} steps, some after 0 and some after 5" in rank["places"]
