"""Losses that differ by store: each label's is that of its store, by whatever way it is computed."""

import numpy as np
import pytest
import torch

from tests.trainer.stores import make_store
from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer import CollateSettings, DistillationCollator, LossSettings, StreamingLogitDataset
from trainer.data.sources import HeldOut
from trainer.hf.heads import batch_loss, find_head

OWN = (
    LossSettings(alpha=0.9, temperature=2.0),
    LossSettings(alpha=0.0),
    LossSettings(alpha=0.5, temperature=1.0),
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("own") / name for name in "abc"]
    for seed, path in enumerate(paths):
        make_store(path, (6, 5), seed=seed, prefix=f"{seed}-")
    return [str(path) for path in paths]


def samples(stores):
    return list(StreamingLogitDataset(stores, batch_size=4, num_splits=3, seed=1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("pack_length", [None, 64])
def test_a_batch_is_the_sum_of_its_stores_by_their_own_losses(stores, fused, pack_length):
    model, given = tiny_student(), samples(stores)
    head = find_head(model) if fused else None
    layout = {"pack_length": pack_length, "packed_attention": "position_ids"} if pack_length else {}
    together = DistillationCollator(
        CollateSettings(
            store_temperatures=tuple(own.temperature if own.alpha else None for own in OWN), **layout
        )
    )(given)
    output = batch_loss(model, together, LossSettings(), head=head, store_settings=OWN)
    parameters = list(model.parameters())
    found = torch.autograd.grad(output.loss, parameters)
    apart, num_labels = [], sum(int(s.sequence.loss_mask_N.sum()) for s in given)
    for store, own in enumerate(OWN):
        part = [sample for sample in given if sample.store == store]
        alone = DistillationCollator(
            CollateSettings(temperature=own.temperature, with_teacher=own.alpha > 0)
        )(part)
        apart.append(batch_loss(model, alone, own, num_items_in_batch=num_labels))
    expected = torch.stack([part.loss for part in apart]).sum()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert int(output.metrics.num_rows) == num_labels
    with_teacher = [one for one, own in zip(apart, OWN, strict=True) if own.alpha]
    rows = [int(one.metrics.num_rows) for one in with_teacher]
    assert int(output.metrics.num_teacher_rows) == sum(rows) < num_labels
    for name in ("teacher_mass", "student_mass", "top1_agreement"):
        of_stores = [float(getattr(one.metrics, name)) for one in with_teacher]
        mean = np.average(of_stores, weights=rows)
        assert float(getattr(output.metrics, name)) == pytest.approx(mean, rel=1e-5), name


@pytest.mark.slow
def test_a_training_uses_the_loss_of_each_store_and_the_same_for_all_is_one_loss(stores, tmp_path):
    def trained(name, store_losses):
        dataset = StreamingLogitDataset(stores, batch_size=4, num_splits=3, seed=1, held_out=HeldOut(0.2))
        trainer = tiny_trainer(
            stores[0],
            tmp_path / name,
            train_dataset=dataset,
            trainer={"store_losses": store_losses},
            max_steps=3,
            alpha=0.5,
        )
        trainer.train()
        return trainer

    plain, same = trained("plain", ()), trained("same", [LossSettings(alpha=0.5)] * 3)
    assert same.store_losses == ()
    assert np.array_equal(weights(plain.model), weights(same.model))
    own = trained("own", OWN)
    assert not np.allclose(weights(own.model), weights(plain.model), atol=1e-4)


def test_losses_that_cannot_be_are_refused(small_store, tmp_path):
    for losses, words in (
        ([LossSettings()] * 2, r"2 store_losses were given for the 1 stores"),
        ([LossSettings(beta=1.0)], r"differs from that of the arguments in more than alpha and temperature"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny_trainer(small_store, tmp_path, trainer={"store_losses": losses})
    with pytest.raises(ValueError, match=r"has alpha=0.5, the arguments have alpha=0"):
        tiny_trainer(small_store, tmp_path, alpha=0.0, trainer={"store_losses": [LossSettings(alpha=0.5)]})
