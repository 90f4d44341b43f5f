"""Label rows that a limit cuts off are counted before the first step, and refused when nothing is left."""

import warnings

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.trainer.stores import make_store
from tests.trainer.students import tiny_student, tiny_trainer
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.sources import HeldOut, StoreSpec
from trainer.errors import GuardError
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.checks.lengths import check_lengths


def labels_at(dataset, limit):
    """By reading every sequence."""
    batches = (
        DistillationCollator(CollateSettings(max_length=limit))([dataset[i]]) for i in range(len(dataset))
    )
    return sum(int((batch["labels"] != -100).sum()) for batch in batches)


@pytest.mark.parametrize("limit", [None, 19, 12, 7, 2])
@pytest.mark.parametrize("where", [None, "num_tokens > 9 and record_id < r5"])
def test_labels_are_counted_without_being_read(small_store, limit, where):
    dataset = StreamingLogitDataset(StoreSpec(str(small_store), where=where), held_out=HeldOut(0.2))
    assert dataset.labels_within(limit) == labels_at(dataset, limit) > 0


def test_losing_every_label_is_refused_and_more_than_one_in_a_hundred_is_said(small_store):
    dataset = StreamingLogitDataset(small_store)
    total = dataset.labels_within(None)
    with pytest.raises(
        GuardError, match=rf"{total} of {total} label rows for training lie beyond max_length=1 "
    ):
        check_lengths(dataset, CollateSettings(max_length=1), None, purpose="training")
    with pytest.warns(UserWarning, match=r"beyond pack_length=12 and are cut off .*raise pack_length"):
        lost = check_lengths(dataset, CollateSettings(pack_length=12), None, purpose="training")
    assert lost == total - dataset.labels_within(12) > 0.01 * total
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_lengths(dataset, CollateSettings(max_length=500), 500, purpose="training") == 0


@pytest.mark.slow
def test_what_is_cut_off_is_logged_by_step(small_store, tmp_path):
    with pytest.warns(UserWarning, match="beyond max_length=12"):
        trainer = tiny_trainer(small_store, tmp_path, collate={"max_length": 12}, max_steps=4)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    reader = StreamingLogitDataset(small_store, batch_size=4, num_splits=3, seed=1, held_out=HeldOut(0.2))
    given = [sample for _, sample in zip(range(16), reader, strict=False)]
    labels = [len(sample.sequence.token_ids_T) - sample.sequence.label_start for sample in given]
    kept = [max(0, min(12 - sample.sequence.label_start, n)) for sample, n in zip(given, labels, strict=True)]
    for step, entry in enumerate(logged):
        part = slice(4 * step, 4 * step + 4)
        assert entry["num_rows"] == sum(kept[part])
        assert entry["num_cut_rows"] == sum(labels[part]) - sum(kept[part])
        lengths = [min(12, len(sample.sequence.token_ids_T)) for sample in given[part]]
        assert entry["fill"] == pytest.approx(sum(lengths) / (4 * -(-max(lengths) // 8) * 8), abs=1e-4)


@pytest.mark.slow
def test_sequences_are_cut_at_the_students_context(small_store, tmp_path):
    """GPT-2 died of an IndexError there, a student with rotary positions went beyond what it was made for."""
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16, attn_pdrop=0.0)
    for collate in ({}, {"pack_length": 40}):
        with pytest.warns(UserWarning, match="beyond the student's context of 16 tokens"):
            trainer = tiny_trainer(small_store, tmp_path, model=GPT2LMHeadModel(config), collate=collate)
        trainer.train()
        assert sum(entry.get("num_cut_rows", 0) for entry in trainer.state.log_history) > 0
    short = tiny_student()
    short.config.max_position_embeddings = 1
    with pytest.raises(GuardError, match=r"student\.small\.max_positions"):
        tiny_trainer(small_store, tmp_path, model=short)


@pytest.mark.slow
def test_an_evaluation_set_without_labels_is_refused_before_training(small_store, tmp_path):
    long_prompts = make_store(tmp_path / "long", (3,), lengths=(30, 31), prefix="long")
    with pytest.raises(GuardError, match=r"label rows for evaluation lie beyond max_length=12"):
        tiny_trainer(
            small_store,
            tmp_path,
            collate={"max_length": 12},
            eval_dataset=StreamingLogitDataset(
                StoreSpec(long_prompts.uri, where="prompt_length >= 12"), batch_size=4
            ),
        )


def test_of_several_processes_the_first_alone_says_what_is_cut_off(small_store, tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="lie beyond max_length=12 and are cut off"):
        tiny_trainer(small_store, tmp_path, collate={"max_length": 12})
    monkeypatch.setattr(OfflineDistillationConfig, "process_index", 1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tiny_trainer(small_store, tmp_path, collate={"max_length": 12})
    assert not [one for one in said if "are cut off" in str(one.message)]
