"""The distillation loss against an independent float64 reference, and the identities it must obey."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.trainer.loss.reference_loss import kind_id, make_case, make_targets, reference_loss
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import TopKDistillationLoss, naive_topk_loss, topk_distillation_loss

KINDS = [
    {},
    {"beta": 1.0},
    {"beta": 0.3},
    {"divergence": "total_variation"},
    {"divergence": "sampled"},
    {"tail": "renormalize"},
    {"tail": "renormalize", "beta": 1.0},
    {"tail": "renormalize", "beta": 0.5},
    {"tail": "zero"},
    {"tail": "zero", "beta": 0.5},
    {"tail": "zero", "divergence": "total_variation"},
    {"tail": "uniform"},
]
KIND_IDS = [kind_id(kind) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_agrees_with_the_reference(kind, temperature, alpha):
    case = make_case(3, temperature=temperature, ragged=True)
    loss_settings = LossSettings(temperature=temperature, alpha=alpha, **kind)
    expected = reference_loss(case.student_logits, case.labels, case.targets, loss_settings)
    output = topk_distillation_loss(case.student_logits, case.labels, case.targets, loss_settings)
    assert output.loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    single = topk_distillation_loss(case.student_logits.float(), case.labels, case.targets, loss_settings)
    assert single.loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
@pytest.mark.parametrize("top_k", [1, 4, 9])
def test_gradient_is_the_derivative(kind, top_k):
    case = make_case(5, batch=1, tokens=3, vocab_size=9, temperature=2.0, top_k=top_k, ragged=top_k == 4)
    case.labels.clamp_(min=0)
    loss_settings = LossSettings(temperature=2.0, alpha=0.6, **kind)

    def loss(logits):
        return topk_distillation_loss(logits, case.labels, case.targets, loss_settings).loss

    assert torch.autograd.gradcheck(loss, (case.student_logits.requires_grad_(),))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_bucket_gradient_has_the_closed_form(temperature):
    case = make_case(11, batch=1, tokens=2, temperature=temperature)
    logits = case.student_logits.requires_grad_()
    output = topk_distillation_loss(
        logits, case.labels, case.targets, LossSettings(temperature=temperature, alpha=1.0)
    )
    output.loss.backward()
    q = torch.softmax(logits.detach()[0, 0] / temperature, dim=0)
    ids = case.targets.token_ids_BTK[0, 1]
    off = torch.ones_like(q, dtype=torch.bool)
    off[ids] = False
    p_hat = torch.where(off, case.targets.tail_logprob_BT[0, 1].exp() * q / q[off].sum(), 0.0)
    p_hat[ids] = case.targets.logprobs_BTK[0, 1].exp()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, 0], temperature * (q - p_hat), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "zero", "uniform"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_whole_vocabulary_stored_is_the_full_kl(tail, temperature):
    case = make_case(7, top_k=23, temperature=temperature)
    output = topk_distillation_loss(
        case.student_logits,
        case.labels,
        case.targets,
        LossSettings(temperature=temperature, alpha=1.0, tail=tail),
    )
    log_q = torch.log_softmax(case.student_logits[:, :-1] / temperature, -1)
    log_p = torch.log_softmax(case.teacher_logits[:, 1:] / temperature, -1)
    counts = case.labels[:, 1:] != -100
    full = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)[counts].mean()
    assert output.loss.item() == pytest.approx(temperature**2 * full.item(), rel=1e-12)
    assert output.metrics.student_mass.item() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", [{}, {"beta": 1.0}, {"beta": 0.5}, {"tail": "renormalize"}])
def test_student_that_equals_the_teacher_has_no_loss_and_no_gradient(kind, temperature, dtype):
    case = make_case(13, temperature=temperature, vocab_size=300, top_k=16, ragged=True)
    student = torch.zeros_like(case.teacher_logits)
    student[:, :-1] = case.teacher_logits[:, 1:]
    student = student.to(dtype).requires_grad_()
    loss_settings = LossSettings(temperature=temperature, alpha=1.0, **kind)
    output = topk_distillation_loss(student, case.labels, case.targets, loss_settings)
    output.loss.backward()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5 * temperature**2
    assert abs(output.loss.item()) < tolerance
    assert student.grad is not None
    assert student.grad.abs().max().item() < tolerance


@given(
    seed=st.integers(0, 10_000),
    top_k=st.integers(1, 22),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
)
@settings(max_examples=25, deadline=None)
def test_chain_rule(seed, top_k, temperature):
    """KL = two-class KL + m_p KL on S + t_p KL off S; the bucket loss is the first two terms."""
    case = make_case(seed, batch=1, tokens=2, top_k=top_k, temperature=temperature)
    labels = case.labels.clamp(min=0)

    def distillation(**kind):
        loss_settings = LossSettings(
            temperature=temperature, alpha=1.0, scale_by_temperature_squared=False, **kind
        )
        return topk_distillation_loss(case.student_logits, labels, case.targets, loss_settings)

    bucket, inside = distillation(), distillation(tail="renormalize").loss.item()
    log_p = torch.log_softmax(case.teacher_logits[0, 1] / temperature, 0)
    log_q = torch.log_softmax(case.student_logits[0, 0] / temperature, 0)
    full = (log_p.exp() * (log_p - log_q)).sum().item()
    off = torch.ones_like(log_p, dtype=torch.bool)
    off[case.targets.token_ids_BTK[0, 1]] = False
    log_tail_p, log_tail_q = log_p[off] - log_p[off].logsumexp(0), log_q[off] - log_q[off].logsumexp(0)
    outside = (log_tail_p.exp() * (log_tail_p - log_tail_q)).sum().item()
    tail_mass = case.targets.tail_logprob_BT[0, 1].exp().item()
    two_classes = bucket.metrics.tail_kl.item()
    assert bucket.loss.item() == pytest.approx(two_classes + (1 - tail_mass) * inside, abs=1e-12)
    assert full == pytest.approx(bucket.loss.item() + tail_mass * outside, abs=1e-11)
    assert -1e-12 <= bucket.loss.item() <= full + 1e-12


@given(seed=st.integers(0, 10_000), beta=st.floats(0.001, 0.999))
@settings(max_examples=20, deadline=None)
def test_jensen_shannon_follows_the_trl_convention(seed, beta):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), bounded by the entropy of beta."""
    case = make_case(seed, top_k=23)
    loss_settings = LossSettings(alpha=1.0, beta=beta)
    output = topk_distillation_loss(case.student_logits, case.labels, case.targets, loss_settings)
    log_q = torch.log_softmax(case.student_logits[:, :-1], -1)
    log_p = torch.log_softmax(case.teacher_logits[:, 1:], -1)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    teacher_kl = functional.kl_div(log_m, log_p, reduction="none", log_target=True).sum(-1)
    student_kl = functional.kl_div(log_m, log_q, reduction="none", log_target=True).sum(-1)
    expected = (beta * teacher_kl + (1 - beta) * student_kl)[case.labels[:, 1:] != -100].mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    bound = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
    assert 0 <= output.loss.item() <= bound


def test_sampled_entries_are_unbiased():
    """The gradient of the mean over draws is that of the full cross-entropy against the teacher."""
    case = make_case(17, batch=1, tokens=2, vocab_size=12)
    labels = case.labels.clamp(min=0)
    p = torch.softmax(case.teacher_logits[0, 1], 0)
    num_draws = 200_000
    drawn = torch.multinomial(p, num_draws, replacement=True, generator=torch.Generator().manual_seed(0))
    ids, counts = drawn.unique(return_counts=True)
    logprobs = (counts.double() / num_draws).log().expand(1, 2, -1)
    targets = TeacherTargets(
        token_ids_BTK=ids.expand(1, 2, -1),
        logprobs_BTK=logprobs,
        tail_logprob_BT=torch.zeros(1, 2),
        mask_BTK=torch.ones_like(logprobs, dtype=torch.bool),
    )
    logits = case.student_logits.requires_grad_()
    topk_distillation_loss(
        logits, labels, targets, LossSettings(alpha=1.0, divergence="sampled")
    ).loss.backward()
    assert logits.grad is not None
    expected = torch.softmax(logits.detach()[0, 0], 0) - p
    standard_error = (p * (1 - p) / num_draws).sqrt()
    assert ((logits.grad[0, 0] - expected).abs() < 5 * standard_error + 1e-9).all()


def test_metrics_are_means_over_the_rows_that_count():
    case = make_case(43, temperature=2.0)
    student = case.student_logits.clone()
    student[0, 0, case.targets.token_ids_BTK[0, 1, 0]] = 50.0
    metrics = topk_distillation_loss(
        student, case.labels, case.targets, LossSettings(temperature=2.0)
    ).metrics
    counts = case.labels[:, 1:] != -100
    q = torch.softmax(student[:, :-1] / 2, -1)
    ids = case.targets.token_ids_BTK[:, 1:]
    student_mass = q.gather(2, ids).sum(-1)[counts].mean()
    teacher_mass = (1 - case.targets.tail_logprob_BT[:, 1:].exp())[counts].mean()
    agreement = (student[:, :-1].argmax(-1) == ids[..., 0])[counts].double().mean()
    assert metrics.num_rows.item() == int(counts.sum())
    assert metrics.student_mass.item() == pytest.approx(student_mass.item(), rel=1e-12)
    assert metrics.teacher_mass.item() == pytest.approx(teacher_mass.item(), rel=1e-12)
    assert metrics.top1_agreement.item() == pytest.approx(agreement.item(), rel=1e-12)
    assert agreement > 0


@pytest.mark.parametrize(
    "kind", [{"tail": "renormalize"}, {"tail": "zero"}, {"divergence": "sampled"}], ids=str
)
def test_the_teachers_mass_is_not_said_to_be_one_where_its_tail_is_left_out(kind):
    case = make_case(43)
    mass = torch.logsumexp(case.targets.logprobs_BTK, -1, keepdim=True)
    alone = dataclasses.replace(
        case.targets,
        logprobs_BTK=case.targets.logprobs_BTK - mass,
        tail_logprob_BT=torch.full_like(case.targets.tail_logprob_BT, -torch.inf),
    )
    metrics = topk_distillation_loss(case.student_logits, case.labels, alone, LossSettings(**kind)).metrics
    assert metrics.teacher_mass.isnan()
    assert metrics.tail_kl.isnan()
    assert 0 < metrics.student_mass < 1
    assert metrics.top1_agreement.isfinite()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"temperature": 1e4}, "temperature=10000 is above 1000: so far up both are even"),
        ({"alpha": 1.5}, "alpha=1.5 must lie in"),
        ({"beta": -0.1}, "beta=-0.1 must lie in"),
        ({"tail": "ghost"}, "tail='ghost' is not one of"),
        ({"tail": "zero", "beta": 1.0}, "is infinite"),
        ({"tail": "uniform", "beta": 0.5}, "forward KL only"),
        ({"divergence": "total_variation", "beta": 0.5}, "means nothing"),
        ({"divergence": "sampled", "tail": "zero"}, "has no tail"),
        ({"vocab_size": 0}, "vocab_size=0"),
    ],
)
def test_impossible_settings_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        LossSettings(**bad)


def test_shapes_that_do_not_fit_are_refused():
    case = make_case(47)
    with pytest.raises(ValueError, match="label-aligned, neither of them shifted"):
        topk_distillation_loss(case.student_logits, case.labels[:, 1:], case.targets, LossSettings())
    with pytest.raises(ValueError, match="one log mass per row"):
        dataclasses.replace(case.targets, tail_logprob_BT=case.targets.tail_logprob_BT[:, 1:])


def test_module_binds_its_settings():
    case = make_case(53, temperature=2.0)
    module = TopKDistillationLoss(LossSettings(temperature=2.0, alpha=0.25, beta=0.5))
    expected = topk_distillation_loss(
        case.student_logits, case.labels, case.targets, LossSettings(temperature=2.0, alpha=0.25, beta=0.5)
    )
    assert module(case.student_logits, case.labels, case.targets).loss.item() == expected.loss.item()


def test_targets_come_from_a_collated_batch():
    case = make_case(59)
    batch = {
        "teacher_token_ids": case.targets.token_ids_BTK,
        "teacher_logprobs": case.targets.logprobs_BTK,
        "teacher_tail_logprob": case.targets.tail_logprob_BT,
        "teacher_mask": case.targets.mask_BTK,
        "input_ids": case.labels,
    }
    targets = TeacherTargets.from_batch(batch).to("cpu")
    first = topk_distillation_loss(case.student_logits, case.labels, targets, LossSettings())
    second = topk_distillation_loss(case.student_logits, case.labels, case.targets, LossSettings())
    assert first.loss.item() == second.loss.item()


def test_naive_loss_is_what_others_compute():
    case = make_case(61, temperature=2.0)
    ids = case.targets.token_ids_BTK[:, 1:]
    student = case.student_logits[:, :-1].gather(2, ids) / 2
    teacher = case.teacher_logits[:, 1:].gather(2, ids) / 2
    expected = 0.0
    for row in range(2):
        for position in range(6):
            p, q = torch.softmax(teacher[row, position], 0), torch.softmax(student[row, position], 0)
            expected += (p * (p / q).log()).sum().item()
    naive = naive_topk_loss(case.student_logits, case.targets, temperature=2.0)
    assert naive.item() == pytest.approx(4 * expected / 2, rel=1e-12)


@pytest.mark.slow
def test_compiles():
    """Traced and differentiated by torch.compile; inductor's code generation is torch's own business."""
    case = make_case(67, temperature=2.0, ragged=True, dtype=torch.float32)
    loss_settings = LossSettings(temperature=2.0, beta=0.5)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return topk_distillation_loss(logits, case.labels, case.targets, loss_settings).loss

    eager, compiled = (
        case.student_logits.clone().requires_grad_(),
        case.student_logits.clone().requires_grad_(),
    )
    loss(eager).backward()
    value = torch.compile(loss, backend="aot_eager")(compiled)
    value.backward()
    assert value.item() == pytest.approx(loss(eager).item(), rel=1e-5)
    assert eager.grad is not None
    torch.testing.assert_close(compiled.grad, eager.grad, rtol=1e-4, atol=1e-6)


def test_make_targets_tail_is_exact():
    """The helper itself: stored mass and tail make one."""
    case = make_case(71, ragged=True)
    targets = make_targets(case.teacher_logits, 1.0, case.targets.mask_BTK.sum(-1), 5)
    stored = targets.logprobs_BTK.exp().sum(-1)
    torch.testing.assert_close(stored + targets.tail_logprob_BT.exp(), torch.ones_like(stored))
