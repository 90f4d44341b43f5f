"""Padding and packing put every token, label and teacher row where it belongs, and nothing elsewhere."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM

from logitstore.errors import TemperatureError
from logitstore.rows import temperature as temperatures
from tests.trainer.stores import label_spec, labeled_sequence
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import COLUMN_ALIASES, TEACHER_KEYS, CollateSettings
from trainer.data.samples import Sample
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import TopKDistillationLoss

SPEC = label_spec()


def samples(lengths=(9, 14, 5, 11), prompts=(3, 0, 1, 6)):
    rng = np.random.default_rng(1)
    return [
        Sample(labeled_sequence(rng, f"r{index}", SPEC, length, prompt), SPEC)
        for index, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
    ]


def collate(given, **settings):
    return DistillationCollator(CollateSettings(**{"packed_attention": "block_diagonal", **settings}))(given)


def places(batch, given, packed):
    """(row, start) of each sequence in a batch, found by its tokens."""
    for index, sample in enumerate(given):
        tokens = torch.from_numpy(sample.sequence.token_ids_T.astype(np.int64))
        rows = range(batch["input_ids"].shape[0]) if packed else [index]
        found = [
            (row, start)
            for row in rows
            for start in range(batch["input_ids"].shape[1] - len(tokens) + 1)
            if torch.equal(batch["input_ids"][row, start : start + len(tokens)], tokens)
        ]
        assert len(found) == 1
        yield sample.sequence, *found[0]


@pytest.mark.parametrize("pack_length", [None, 24])
@pytest.mark.parametrize("temperature", [1.0, 1.5, 4.0])
def test_every_row_stands_at_its_token(pack_length, temperature):
    given = samples()
    batch = collate(given, pack_length=pack_length, temperature=temperature)
    counted = 0
    for sequence, row, start in places(batch, given, pack_length is not None):
        length = len(sequence.token_ids_T)
        expected = np.full(length, -100)
        expected[sequence.label_start :] = sequence.token_ids_T[sequence.label_start :]
        assert batch["labels"][row, start : start + length].tolist() == expected.tolist()
        assert batch["position_ids"][row, start : start + length].tolist() == list(range(length))
        here = slice(start + sequence.label_start, start + length)
        rows = sequence.rows
        assert torch.equal(batch["teacher_token_ids"][row, here], torch.from_numpy(rows.token_ids_NK).long())
        logprobs = temperatures.logprobs(rows, SPEC, temperature)
        tail = temperatures.log_tail_mass(rows, SPEC, temperature)
        assert np.array_equal(batch["teacher_logprobs"][row, here].numpy(), logprobs)
        assert np.array_equal(batch["teacher_tail_logprob"][row, here].numpy(), tail)
        assert bool(batch["teacher_mask"][row, here].all())
        total = np.exp(batch["teacher_logprobs"][row, here].double().numpy()).sum(1) + np.exp(tail)
        assert np.allclose(total, 1, atol=2e-3)
        counted += rows.num_rows
    assert int((batch["labels"] != -100).sum()) == counted
    assert int(batch["teacher_mask"].any(-1).sum()) == counted


def test_masked_rows_are_no_labels_and_the_row_past_the_end_is_dropped():
    (given,) = samples((8,), (2,))
    sequence = given.sequence
    sequence.loss_mask_N[1:3] = False
    longer = Sample(dataclasses.replace(sequence, token_ids_T=sequence.token_ids_T[:-1]), SPEC)
    labels = collate([given, longer])["labels"]
    tokens = sequence.token_ids_T.tolist()
    assert labels[0].tolist() == [-100, -100, tokens[2], -100, -100, *tokens[5:8]]
    assert labels[1].tolist() == [-100, -100, tokens[2], -100, -100, *tokens[5:7], -100]


def test_truncation_keeps_the_start_and_its_rows():
    given = samples((20,), (4,))
    batch = collate(given, max_length=9, pad_to_multiple_of=1)
    assert batch["input_ids"].shape == (1, 9)
    assert int((batch["labels"] != -100).sum()) == 5
    assert int(batch["teacher_mask"].any(-1).sum()) == 5


def test_prompt_beyond_the_limit_leaves_no_label():
    batch = collate(samples((20,), (15,)), max_length=9)
    assert int((batch["labels"] != -100).sum()) == 0
    assert not bool(batch["teacher_mask"].any())


@pytest.mark.parametrize("packed_attention", ["block_diagonal", "position_ids"])
def test_packed_documents_do_not_see_each_other(packed_attention):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    given = samples()
    batch = collate(given, pack_length=30, packed_attention=packed_attention)
    assert batch["input_ids"].shape == (2, 24)
    assert ("attention_mask" in batch) == (packed_attention == "block_diagonal")
    keys = ("input_ids", "attention_mask", "position_ids")
    with torch.no_grad():
        packed = model(**{key: batch[key] for key in keys if key in batch}, use_cache=False).logits
        for sequence, row, start in places(batch, given, True):
            tokens = torch.from_numpy(sequence.token_ids_T.astype(np.int64))[None]
            alone = model(input_ids=tokens).logits[0]
            assert torch.allclose(packed[row, start : start + tokens.shape[1]], alone, atol=1e-5)
    assert not packed.isnan().any()


def test_packing_does_not_change_the_loss():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    given, losses = samples(), []
    for settings in ({}, {"pack_length": 40}):
        batch = collate(given, **settings)
        logits = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}).logits
        loss_of = TopKDistillationLoss(LossSettings())
        losses.append(loss_of(logits, batch["labels"], TeacherTargets.from_batch(batch)).loss)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def test_stores_of_different_width_share_a_batch():
    wide = label_spec(top_k=12)
    rng = np.random.default_rng(2)
    given = [Sample(labeled_sequence(rng, "w", wide, 9, 2), wide), *samples((7,), (2,))]
    batch = collate(given)
    assert batch["teacher_mask"].shape[2] == 12
    assert not bool(batch["teacher_mask"][1, :, 8:].any())
    assert bool((batch["teacher_logprobs"][1, :, 8:] == -torch.inf).all())


def test_temperature_outside_the_store_is_refused_unless_renormalised_by_name():
    with pytest.raises(TemperatureError, match=r"temperature 0.5 is below 1"):
        collate(samples(), temperature=0.5)
    batch = collate(samples(), temperature=0.5, renormalize=True)
    total = batch["teacher_logprobs"].exp().sum(-1)[batch["teacher_mask"].any(-1)]
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    assert bool((batch["teacher_tail_logprob"][batch["teacher_mask"].any(-1)] == -torch.inf).all())


@pytest.mark.parametrize("name", sorted(COLUMN_ALIASES))
def test_other_trainers_find_their_columns(name):
    ours, theirs = collate(samples()), collate(samples(), column_aliases=COLUMN_ALIASES[name])
    for key, value in ours.items():
        assert torch.equal(theirs[COLUMN_ALIASES[name].get(key, key)], value)
    assert len(theirs) == len(ours)


def test_logit_alignment_moves_the_teacher_one_to_the_left():
    label, logit = collate(samples()), collate(samples(), alignment="logit")
    for key in TEACHER_KEYS:
        assert torch.equal(logit[key][:, :-1], label[key][:, 1:])
    assert torch.equal(logit["labels"], label["labels"])


def test_hard_labels_need_no_teacher_keys():
    assert not set(collate(samples(), with_teacher=False)) & set(TEACHER_KEYS)


class BatchesOf(IterableDataset[Any]):
    def __init__(self, given, settings):
        self.given, self.settings = given, settings

    def __iter__(self):
        yield collate(self.given, **self.settings)


@pytest.mark.parametrize("pack_length", [None, 24])
def test_a_workers_batch_is_one_piece_of_shared_memory(pack_length):
    given, settings = samples(), {"pack_length": pack_length, "column_aliases": COLUMN_ALIASES["axolotl"]}
    here = collate(given, **settings)
    (there,) = DataLoader(BatchesOf(given, settings), batch_size=None, num_workers=1)
    assert list(there) == list(here)
    for key, tensor in here.items():
        assert torch.equal(there[key], tensor), key
        assert (there[key].dtype, there[key].is_contiguous()) == (tensor.dtype, True), key
    assert len({tensor.untyped_storage().data_ptr() for tensor in there.values()}) == 1
    assert len({tensor.untyped_storage().data_ptr() for tensor in here.values()}) == len(here)


def test_a_workers_batch_can_be_changed_key_by_key():
    given = samples()
    (there,) = DataLoader(BatchesOf(given, {}), batch_size=None, num_workers=1)
    others = {key: tensor.clone() for key, tensor in there.items() if key != "labels"}
    there["labels"].fill_(-100)
    assert all(torch.equal(there[key], tensor) for key, tensor in others.items())
