"""Data of which no label counts is refused at construction: it trained on nothing, at a loss of 0."""

from dataclasses import replace

import numpy as np
import pytest

from logitstore.errors import TemperatureError
from logitstore.store import LogitStore
from tests.trainer.stores import label_spec, labeled_sequence, make_store, manifest
from tests.trainer.students import tiny_trainer
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.sources import StoreSpec
from trainer.errors import GuardError


def store_of(path, is_masked, *, num_labels=None):
    """20 sequences, those for which `is_masked` says so without a label that counts."""
    spec = label_spec()
    rng = np.random.default_rng(0)
    store = LogitStore.create(str(path), manifest(spec))
    sequences = []
    for number in range(20):
        labeled = labeled_sequence(rng, f"r{number}", spec, 9, 2)
        if num_labels is not None:
            labeled = replace(
                labeled,
                token_ids_T=labeled.token_ids_T[: labeled.label_start + num_labels],
                rows=labeled.rows.slice(0, num_labels),
                loss_mask_N=labeled.loss_mask_N[:num_labels],
            )
        mask_N = np.full_like(labeled.loss_mask_N, not is_masked(number))
        sequences.append(replace(labeled, loss_mask_N=mask_N))
    store.commit_unit("unit-0", 0, sequences, seconds=0.0, worker="test")
    return path


def test_a_store_without_a_label_that_counts_is_refused_by_name(small_store, tmp_path):
    masked = store_of(tmp_path / "masked", lambda number: True)
    empty = store_of(tmp_path / "empty", lambda number: False, num_labels=0)
    for store in (masked, empty):
        beside = StreamingLogitDataset([small_store, store], batch_size=4)
        for given in ({"store": store}, {"store": small_store, "train_dataset": beside}):
            with pytest.raises(GuardError, match=f"no label of .*{store.name} counts"):
                tiny_trainer(
                    **given, folder=tmp_path / "run", eval_dataset=StreamingLogitDataset(small_store)
                )


def test_an_evaluation_without_a_label_that_counts_is_refused_before_training(small_store, tmp_path):
    masked = StreamingLogitDataset(store_of(tmp_path / "masked", lambda number: True), batch_size=4)
    with pytest.raises(GuardError, match="no label for evaluation counts"):
        tiny_trainer(small_store, tmp_path / "run", eval_dataset=masked)
    sets = {"a": StreamingLogitDataset(small_store, batch_size=4), "b": masked}
    with pytest.raises(GuardError, match="no label for evaluation b counts"):
        tiny_trainer(small_store, tmp_path / "run", eval_dataset=sets)
    some = StreamingLogitDataset(
        store_of(tmp_path / "some", lambda number: number < 19), batch_size=1, shuffle=False
    )
    tiny_trainer(small_store, tmp_path / "run", eval_dataset=some)
    with pytest.raises(GuardError, match="max_eval_sequences takes some of the sequences alone"):
        tiny_trainer(small_store, tmp_path / "run", eval_dataset=some, max_eval_sequences=4)


@pytest.mark.slow
@pytest.mark.parametrize("collate", [{}, {"pack_length": 16}], ids=str)
def test_sequences_of_one_label_are_trained_on(tmp_path, collate):
    store = store_of(tmp_path / "store", lambda number: number % 2 == 1, num_labels=1)
    trainer = tiny_trainer(store, tmp_path / "run", max_steps=5, collate=collate)
    trainer.train()
    rows = [entry["num_rows"] for entry in trainer.state.log_history if "loss" in entry]
    assert 0 < sum(rows) < 5 * 4


def test_sets_for_evaluation_are_checked_as_those_for_training(small_store, tmp_path):
    """Figures against the labels of another vocabulary would mean nothing."""
    make_store(tmp_path / "wide", (9,), spec=label_spec(vocab_size=80))
    with pytest.raises(GuardError, match=r"the student has 64 logits, the teacher of .*wide 80"):
        tiny_trainer(
            small_store, tmp_path / "run", eval_dataset=StreamingLogitDataset(tmp_path / "wide", batch_size=4)
        )


def test_stores_of_different_tokenizers_are_refused_without_the_students_too(small_store, tmp_path):
    """Nothing was checked where no tokenizer was given, and the same id meant two tokens."""
    for name, fingerprint in (("one", "sha256:aa"), ("other", "sha256:bb")):
        make_store(tmp_path / name, (9,), fingerprint=fingerprint, prefix=name)
    both = StreamingLogitDataset([tmp_path / "one", small_store, tmp_path / "other"], batch_size=4)
    one, other = (StreamingLogitDataset(tmp_path / name, batch_size=4) for name in ("one", "other"))
    for dataset, evaluated in ((both, None), (one, other)):
        with pytest.raises(GuardError, match=r"one and .*other were labeled with different tokenizers"):
            tiny_trainer(small_store, tmp_path / "run", train_dataset=dataset, eval_dataset=evaluated)


def test_a_weight_that_leaves_nothing_of_a_store_is_refused(small_store, tmp_path):
    """The store was in no epoch, and nothing said so."""
    make_store(tmp_path / "few", (9,), prefix="few")

    def trainer(weight):
        stores = [StoreSpec(str(small_store)), StoreSpec(str(tmp_path / "few"), weight=weight)]
        dataset = StreamingLogitDataset(stores, batch_size=4)
        held_out = StreamingLogitDataset(small_store, batch_size=4)
        return tiny_trainer(small_store, tmp_path / "run", train_dataset=dataset, eval_dataset=held_out)

    with pytest.raises(GuardError, match=r"the weight 0.05 of .*few leaves none of its 9 .* at least 0.11"):
        trainer(0.05)
    for weight in (0.0, 0.12, 1.01):
        trainer(weight)


def test_texts_alone_at_another_temperature_are_told_what_to_do(tmp_path):
    make_store(tmp_path / "texts", (9,), texts_alone=True)
    dataset = StreamingLogitDataset(tmp_path / "texts", batch_size=4)
    with pytest.raises(
        TemperatureError, match=r"texts holds texts alone, .* at temperature 2; learn them with"
    ):
        tiny_trainer(tmp_path / "texts", tmp_path / "run", train_dataset=dataset, temperature=2.0)


def test_a_store_of_which_nothing_is_selected_is_said(small_store, tmp_path):
    """It was missing beside the others without a word."""
    make_store(tmp_path / "few", (9,), prefix="few")
    stores = [StoreSpec(str(small_store)), StoreSpec(str(tmp_path / "few"), where="num_tokens > 9999")]
    dataset = StreamingLogitDataset(stores, batch_size=4)
    held_out = StreamingLogitDataset(small_store, batch_size=4)
    with pytest.warns(UserWarning, match=r"few adds nothing to training: it is empty, its selection"):
        tiny_trainer(small_store, tmp_path / "run", train_dataset=dataset, eval_dataset=held_out)
