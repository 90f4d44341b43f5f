"""Evaluation sets by name, and the loaders of their batches, as in the Trainer that users know."""

import pytest
import torch

from tests.trainer.students import tiny_trainer
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.sources import HeldOut
from trainer.errors import SettingError


def held_out(store, fraction):
    return StreamingLogitDataset(store, held_out=HeldOut(fraction, "held_out"), batch_size=4, num_splits=3)


def test_loaders_give_the_batches_of_an_evaluation_at_each_pass(small_store, tmp_path):
    """They were transformers' own, which read on in the order of training."""
    trainer = tiny_trainer(small_store, tmp_path, collate={"pack_length": 48}, temperature=2.0)
    loader = trainer.get_eval_dataloader()
    first, again = list(loader), list(loader)
    assert len(first) == len(loader) == 3
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    rows = sum(int((batch["labels"] != -100).sum()) for batch in first)
    assert rows == trainer.evaluate()["eval_num_rows"]
    assert max(batch["input_ids"].shape[0] for batch in first) == 4, "padded, not packed"
    whole = StreamingLogitDataset(small_store, batch_size=8)
    assert len(list(trainer.get_test_dataloader(whole))) == len(trainer.get_eval_dataloader(whole)) == 8


@pytest.mark.slow
def test_a_set_may_be_named(small_store, tmp_path):
    sets = {"few": held_out(small_store, 0.2), "rest": held_out(small_store, 0.5)}
    trainer = tiny_trainer(small_store, tmp_path, eval_dataset=sets)
    found = trainer.evaluate()
    assert found["eval_few_num_rows"] < found["eval_rest_num_rows"]
    for name, dataset in sets.items():
        assert trainer.evaluate(name)["eval_kl"] == found[f"eval_{name}_kl"]
        assert trainer.evaluate_student(name).kl == found[f"eval_{name}_kl"]
        assert trainer.predict(name).metrics["test_num_rows"] == found[f"eval_{name}_num_rows"]  # type: ignore[index]
        assert trainer.get_eval_dataloader(name).dataset is dataset


def test_sets_that_are_not_there_are_refused_with_those_that_are(small_store, tmp_path):
    sets = {"few": held_out(small_store, 0.2), "rest": held_out(small_store, 0.5)}
    several = tiny_trainer(small_store, tmp_path, eval_dataset=sets)
    single = tiny_trainer(small_store, tmp_path)
    for ask in ("evaluate", "evaluate_student", "predict", "get_eval_dataloader", "get_test_dataloader"):
        with pytest.raises(SettingError, match="no evaluation set 'fwe': they are few, rest"):
            getattr(several, ask)("fwe")
        with pytest.raises(SettingError, match="no evaluation set 'few': the Trainer was given none by name"):
            getattr(single, ask)("few")
    for ask in ("evaluate_student", "get_eval_dataloader"):
        with pytest.raises(SettingError, match=r"several evaluation sets \(few, rest\).*name it"):
            getattr(several, ask)()
