"""Evaluation against formulas written out in float64, and heads that are not what they seem."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.trainer.stores import label_spec, labeled_sequence, make_store
from tests.trainer.students import tiny_student
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.samples import Sample
from trainer.data.sources import HeldOut, StoreSpec
from trainer.errors import NotFiniteError, UnsupportedHeadError
from trainer.hf.evaluation import evaluate as evaluate_module
from trainer.hf.evaluation.calibration import NUM_BINS, CalibrationSums
from trainer.hf.evaluation.evaluate import evaluate, evaluation_batches, evaluation_steps
from trainer.hf.evaluation.teacher_figures import teacher_figures
from trainer.hf.heads import batch_loss, find_head
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings

SPEC = label_spec()


def given_samples(count=7):
    rng = np.random.default_rng(4)
    return [
        Sample(labeled_sequence(rng, f"r{n}", SPEC, int(rng.integers(4, 30)), n % 3), SPEC)
        for n in range(count)
    ]


def batches(samples, size=3):
    collator = DistillationCollator(CollateSettings())
    return [collator(samples[start : start + size]) for start in range(0, len(samples), size)]


def reference(model, samples):
    """Everything by sequence, in float64, from the definition."""
    kl, cross_entropy, agrees, teacher, student, confidence, right = [], [], [], [], [], [], []
    at_least, at_most = [], []
    for sample in samples:
        sequence = sample.sequence
        tokens = torch.from_numpy(sequence.token_ids_T.astype(np.int64))
        with torch.no_grad():
            logq = model(input_ids=tokens[None]).logits[0].double().log_softmax(-1).numpy()
        for row in range(sequence.rows.num_rows):
            place = sequence.label_start + row
            q, label = np.exp(logq[place - 1]), sequence.token_ids_T[place]
            ids = sequence.rows.token_ids_NK[row]
            p = np.exp(sequence.rows.logits_NK[row].astype(float) - sequence.rows.logsumexp_NM[row, 0])
            tail_p, tail_q = np.exp(float(sequence.rows.log_tail_mass_NM[row, 0])), 1 - q[ids].sum()
            kl.append((p * np.log(p / q[ids])).sum() + tail_p * np.log(tail_p / tail_q))
            cross_entropy.append(-np.log(q[label]))
            agrees.append(q.argmax() == ids[0])
            teacher.append(p.sum())
            student.append(q[ids].sum())
            at_least.append(np.minimum(p, q[ids]).sum())
            at_most.append(at_least[-1] + min(tail_p, tail_q))
            confidence.append(q.max())
            right.append(q.argmax() == label)
    bins = np.minimum((np.array(confidence) * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [abs((np.array(right) - np.array(confidence))[bins == index].sum()) for index in range(NUM_BINS)]
    means = [float(np.mean(values)) for values in (kl, cross_entropy, agrees, right)]
    return [
        *means,
        sum(gaps) / len(kl),
        float(np.mean(teacher)),
        float(np.mean(student)),
        float(np.mean(at_least)),
        float(np.mean(at_most)),
    ]


@pytest.mark.parametrize("piece_tokens", [256, 5])
@pytest.mark.parametrize("with_head", [True, False])
def test_evaluation_is_that_of_the_definitions(monkeypatch, with_head, piece_tokens):
    monkeypatch.setattr(evaluate_module, "PIECE_TOKENS", piece_tokens)
    model, samples = tiny_student(), given_samples()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    found = evaluate(model, batches(samples), head=find_head(model) if with_head else None)
    assert found.num_sequences == len(samples)
    assert found.num_rows == sum(sample.sequence.rows.num_rows for sample in samples)
    figures = [
        found.kl,
        found.cross_entropy,
        found.top1_agreement,
        found.accuracy,
        found.calibration_error,
        found.teacher_mass,
        found.student_mass,
        found.acceptance_at_least,
        found.acceptance_at_most,
    ]
    assert figures == pytest.approx(reference(model, samples), rel=2e-3)
    assert model.training


def test_every_process_evaluates_equally_often(tmp_path):
    """Or sharded models would wait for ever; what fills up the last step does not count."""
    make_store(tmp_path / "s", (9, 8))
    alone = None
    for world_size in (1, 2, 4):
        held_out = [
            StreamingLogitDataset(
                tmp_path / "s", batch_size=2, num_splits=2, rank=rank, world_size=world_size
            )
            for rank in range(world_size)
        ]
        of_ranks = [
            list(evaluation_batches(reader, DistillationCollator(CollateSettings()), None))
            for reader in held_out
        ]
        assert {len(of_rank) for of_rank in of_ranks} == {-(-17 // (2 * world_size))}
        found = evaluate(tiny_student(), [batch for of_rank in of_ranks for batch in of_rank])
        alone = alone or found
        assert found.num_sequences == 17
        assert found.to_dict() == pytest.approx(alone.to_dict(), rel=1e-5)


def judged_ids(stores, most, **given):
    """Record ids of the sequences that all processes read for an evaluation, sorted."""
    world_size = given.pop("world_size", 1)
    return sorted(
        sample.sequence.record_id
        for rank in range(world_size)
        for sample in StreamingLogitDataset(stores, rank=rank, world_size=world_size, **given).judged(most)
    )


def test_a_limited_evaluation_is_of_exactly_so_many_and_always_the_same(tmp_path):
    """Whatever the order, the batches, the processes and the held-out fraction are."""
    make_store(tmp_path / "s", (30, 31, 32))
    held_out = HeldOut(0.6, "held_out")
    found = judged_ids(tmp_path / "s", 10, batch_size=4, held_out=held_out)
    assert len(found) == len(set(found)) == 10
    for given in (
        {"batch_size": 8},
        {"batch_size": 4, "world_size": 4, "even": True},
        {"batch_size": 3, "num_splits": 1},
        {"shuffle": False},
        {"seed": 7},
        {"batch_size": 4, "held_out": HeldOut(0.9, "held_out")},
        {"batch_size": 4, "held_out": None},
    ):
        assert judged_ids(tmp_path / "s", 10, **{"held_out": held_out, **given}) == found
    dataset = StreamingLogitDataset(tmp_path / "s", batch_size=4, held_out=held_out)
    for most, batches_ in ((10, 3), (10, 3), (1, 1)):
        rows = [len(batch["labels"]) for batch in evaluation_batches(dataset, plain_collator(), most)]
        assert (sum(rows), len(rows)) == (most, batches_)
        assert evaluation_steps(dataset, most) == batches_
    whole = judged_ids(tmp_path / "s", None, held_out=held_out)
    assert set(found) < set(whole)
    assert judged_ids(tmp_path / "s", 1000, held_out=held_out) == whole
    assert dataset.num_sequences == len(whole)  # what was asked for an evaluation changes nothing of it


def test_an_evaluation_reads_each_sequence_once_whatever_its_weight(tmp_path):
    for name in ("a", "b", "c"):
        make_store(tmp_path / name, (9, 8), prefix=name)
    stores = [
        StoreSpec(str(tmp_path / name), weight) for name, weight in zip("abc", (0.5, 2.0, 0.0), strict=True)
    ]
    equal = [StoreSpec(str(tmp_path / name)) for name in "ab"]
    for most in (None, 20):
        found = judged_ids(stores, most, batch_size=4)
        assert found == judged_ids(equal, most, batch_size=4)
        assert len(found) == len(set(found)) == (most or 34)
    dataset = StreamingLogitDataset(stores, batch_size=4)
    assert evaluate(tiny_student(), evaluation_batches(dataset, plain_collator(), None)).num_sequences == 34
    teacher = teacher_figures(dataset, CollateSettings(), None)
    assert teacher is not None
    assert teacher.num_rows == sum(
        sample.sequence.rows.num_rows for sample in StreamingLogitDataset(equal, batch_size=4)
    )


def plain_collator():
    return DistillationCollator(CollateSettings())


def test_nothing_to_evaluate_on_is_an_error():
    samples = given_samples(2)
    for sample in samples:
        sample.sequence.loss_mask_N[:] = False
    with pytest.raises(ValueError, match=r"raise the fraction of HeldOut"):
        evaluate(tiny_student(), batches(samples))


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), float("-inf")])
def test_a_student_without_finite_figures_is_refused_in_words(logit):
    """One diverged: confidences that are no numbers are in no bin, and JSON has no form for its figures."""
    model = tiny_student()
    model.lm_head.register_forward_hook(
        lambda _, __, logits_BTV: logits_BTV.index_fill(2, torch.arange(7), logit)
    )
    with pytest.raises(
        NotFiniteError, match=r"KL (nan|inf), cross-entropy (nan|inf)\): its training diverged"
    ):
        evaluate(model, batches(given_samples()), calibration=CalibrationSums())


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "cohere", "granite", "gemma2"])
def test_fused_loss_equals_dense_for_many_heads(kind):
    model = architecture(kind)
    (batch,) = batches(given_samples(3))
    head, settings = find_head(model), LossSettings(temperature=1.0)
    dense, fused = batch_loss(model, batch, settings), batch_loss(model, batch, settings, head=head)
    assert fused.loss.item() == pytest.approx(dense.loss.item(), rel=1e-5)
    expected = torch.autograd.grad(dense.loss, list(model.parameters()), allow_unused=True)
    found = torch.autograd.grad(fused.loss, list(model.parameters()), allow_unused=True)
    for left, right in zip(expected, found, strict=True):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            assert torch.allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["cohere", "granite", "gemma2"])
def test_a_head_in_half_precision_is_found(kind, dtype):
    """The model rounds its logits again where it scales or caps them, the head's projection does not."""
    model: Any = architecture(kind).to(dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)  # so that the cap bends the logits
    assert find_head(model).module is model.get_output_embeddings()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_off_by_a_tenth_is_refused(dtype):
    model: Any = architecture("cohere").to(dtype)
    model.config.logit_scale *= 1.1
    with pytest.raises(UnsupportedHeadError, match=r"differ by 0\.1"):
        find_head(model)


def test_a_bound_that_hardly_shows_on_a_fresh_student_is_found_or_refused(monkeypatch):
    """Its small logits passed for those of a plain head, and the loss was another once they had grown."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "lru_width": 16,
        "intermediate_size": 32,
    }  # fmt: skip
    model: Any = transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(**sizes))
    assert find_head(model).softcap == model.config.logits_soft_cap == 30
    monkeypatch.setattr("trainer.hf.heads._SOFTCAPS", ("final_logit_softcapping",))
    with pytest.raises(UnsupportedHeadError, match=r"projection with scale 1.0 and softcap None"):
        find_head(model)


def architecture(kind):
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    if kind in ("llama", "tied"):
        return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=kind == "tied"))
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=64, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
            )
        )
    if kind == "cohere":
        return transformers.CohereForCausalLM(transformers.CohereConfig(**sizes, logit_scale=0.25))
    if kind == "granite":
        return transformers.GraniteForCausalLM(transformers.GraniteConfig(**sizes, logits_scaling=4.0))
    config = transformers.Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=3.0)
    return transformers.Gemma2ForCausalLM(config)


def test_a_head_that_does_something_else_is_refused():
    model = tiny_student()
    original: Any = model.forward

    def doubled(*args, **kwargs):
        output = original(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled  # type: ignore[method-assign]
    with pytest.raises(UnsupportedHeadError, match=r"set fused=False \(loss.fused=false in"):
        find_head(model)


def test_the_share_that_a_teacher_accepts_lies_between_its_bounds():
    """Where everything is stored both bounds are the definition; for the teacher itself they are 1."""
    rng = np.random.default_rng(2)
    vocab = 12
    logits_NV = rng.normal(0, 2, (5, vocab))
    p_NV = np.exp(logits_NV - np.logaddexp.reduce(logits_NV, axis=1, keepdims=True))
    q_NV = rng.dirichlet(np.ones(vocab), 5)
    exact = float(np.minimum(p_NV, q_NV).sum(axis=1).mean())
    counts_T = torch.ones(5, dtype=torch.bool)
    for top_k in (vocab, 4):
        ids_NK = np.argsort(-p_NV, axis=1)[:, :top_k].copy()
        stored_NK = np.take_along_axis(p_NV, ids_NK, axis=1)
        with np.errstate(divide="ignore"):
            tail_N = np.log(np.maximum(1 - stored_NK.sum(axis=1), 0))

        def before_first(values):
            return torch.cat([torch.zeros_like(torch.tensor(values[:1])), torch.tensor(values)])[None]

        targets = TeacherTargets(
            token_ids_BTK=before_first(ids_NK),
            logprobs_BTK=before_first(np.log(stored_NK)),
            tail_logprob_BT=before_first(tail_N),
            mask_BTK=before_first(np.ones_like(ids_NK, dtype=bool)),
        )
        low, high = (
            float(value) for value in evaluate_module._acceptance(torch.tensor(q_NV), targets, counts_T)
        )
        assert low - 1e-9 <= exact <= high + 1e-9
        if top_k == vocab:
            assert low == pytest.approx(exact, abs=1e-12)
            assert high == pytest.approx(exact, abs=1e-9)
        else:
            assert high - low > 0.01
        itself = evaluate_module._acceptance(torch.tensor(p_NV), targets, counts_T)
        assert float(itself[1]) == pytest.approx(1, abs=1e-9)
        # A student that has only the first ids: the teacher's others are its tail, and nothing is lost.
        narrow = evaluate_module._acceptance(torch.tensor(q_NV[:, :6]), targets, counts_T)
        known = np.where(ids_NK < 6, stored_NK, 0)
        expected = np.minimum(known, np.take_along_axis(q_NV, ids_NK, 1)).sum(axis=1).mean()
        assert float(narrow[0]) == pytest.approx(expected, abs=1e-12)
