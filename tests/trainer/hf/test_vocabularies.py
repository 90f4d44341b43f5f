"""Students whose vocabulary is padded, or smaller than the teacher's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.trainer.stores import label_spec, labeled_sequence
from tests.trainer.students import tiny_student, tiny_trainer
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.samples import Sample
from trainer.data.sources import HeldOut
from trainer.errors import GuardError, SettingError
from trainer.hf.evaluation.evaluate import evaluate
from trainer.hf.heads import find_head

SPEC = label_spec()


def batches(**settings):
    rng = np.random.default_rng(4)
    samples = [Sample(labeled_sequence(rng, f"r{n}", SPEC, 20, n % 3), SPEC) for n in range(5)]
    return [DistillationCollator(CollateSettings(**settings))(samples)]


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_a_student_with_fewer_ids_is_told_which_record_it_cannot_read(small_store, tmp_path, fused):
    model = tiny_student(vocab_size=40)
    with pytest.raises(GuardError, match=r"has the token id \d+, the student only 40 ids"):
        tiny_trainer(small_store, tmp_path, model=model, fused=fused, foreign_ids="tail")


@pytest.mark.parametrize("with_head", [True, False])
def test_labels_beyond_the_ids_that_count_are_refused_in_words(with_head):
    model = tiny_student()
    head = find_head(model) if with_head else None
    with pytest.raises(ValueError, match=r"label \d+ is beyond the 40 ids of the student"):
        evaluate(model, batches(), head=head, vocab_size=40)


def test_evaluation_says_the_mass_on_ids_that_no_tokenizer_has():
    model = tiny_student(vocab_size=96)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    given = batches()
    found = evaluate(model, given, vocab_size=64, tokenizer_size=64).mass_beyond_tokenizer
    with torch.no_grad():
        logits = model(input_ids=given[0]["input_ids"], attention_mask=given[0]["attention_mask"]).logits
    counts = given[0]["labels"][:, 1:] != -100
    expected = logits[:, :-1][counts].double().softmax(-1)[:, 64:].sum(-1).mean().item()
    assert 0.05 < expected < 0.95
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_student_without_such_ids_has_no_mass_there_and_an_unknown_tokenizer_gives_no_figure():
    model, given = tiny_student(), batches()
    assert evaluate(model, given, tokenizer_size=64).mass_beyond_tokenizer == 0
    unknown = evaluate(model, given)
    assert unknown.mass_beyond_tokenizer is None
    assert "mass_beyond_tokenizer" not in unknown.to_dict()


@pytest.mark.slow
def test_the_mass_on_unused_ids_is_trained_away(small_store, tmp_path):
    """By vocab_size=None, where they take part in the softmax and no label ever names them."""
    model = tiny_student(vocab_size=96)
    held_out = StreamingLogitDataset(small_store, held_out=HeldOut(0.2, "held_out"), batch_size=4)
    trainer = tiny_trainer(
        small_store, tmp_path, model=model, eval_dataset=held_out, foreign_ids="tail", max_steps=40
    )
    before = trainer.evaluate_student().mass_beyond_tokenizer
    trainer.train()
    after = trainer.evaluate_student().mass_beyond_tokenizer
    assert before is not None
    assert after is not None
    assert after < 0.5 * before


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_called_that(bad):
    model = tiny_student()
    with torch.no_grad():
        model.lm_head.weight[3] = bad
    with pytest.raises(SettingError, match="logits of LlamaForCausalLM are not finite"):
        find_head(model)
