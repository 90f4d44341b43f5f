"""Values and gradients of 864 cases, dense and fused, against a reference that takes one row at a time.

Temperature, alpha, tail, divergence and beta; a vocabulary of 13 of which 1, 4, 12 or all 13 ids are stored,
every row as many or each another number of them; masked labels; labels counted elsewhere or here. The
reference gets its gradients from autograd, in float64, and shares nothing with the project.

Shape legend: B batch, T tokens, K stored entries, V vocabulary, H hidden size.
"""

import itertools
import math
from typing import Any

import pytest
import torch

from trainer.loss.fused_linear import FusedLinearTopKDistillationLoss
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import TopKDistillationLoss

pytestmark = pytest.mark.slow
VOCAB_SIZE, HIDDEN_SIZE = 13, 5
TEMPERATURES, ALPHAS, TOP_KS = (1.0, 1.5, 2.0, 4.0), (0.0, 0.3, 1.0), (4, 1, 13, 12)
FORMULAS: list[Any] = [
    *(
        (tail, beta, "generalized_jsd")
        for tail in ("bucket", "renormalize")
        for beta in (0.0, 0.1, 0.5, 0.9, 1.0)
    ),
    *(("zero", beta, "generalized_jsd") for beta in (0.0, 0.1, 0.5, 0.9)),
    ("uniform", 0.0, "generalized_jsd"),
    *((tail, 0.0, "total_variation") for tail in ("bucket", "renormalize", "zero")),
]


def distributions(logits_V, teacher_V, ids, temperature, tail):
    """(teacher, student) of one row as the tail's rule makes them; the rest of the student's mass is last."""
    rest = torch.ones(VOCAB_SIZE, dtype=torch.bool)
    rest[ids] = False
    p, q_V = teacher_V[ids], torch.softmax(logits_V / temperature, 0)
    q, p_rest, q_rest = q_V[ids], teacher_V[rest].sum(), q_V[rest].sum()
    if tail == "bucket":
        return (torch.cat([p, p_rest[None]]), torch.cat([q, q_rest[None]])) if rest.any() else (p, q)
    if tail == "renormalize":
        return p / p.sum(), torch.softmax(logits_V[ids] / temperature, 0)
    if tail == "zero":
        return torch.cat([p / p.sum(), p.new_zeros(1)]), torch.cat([q, q_rest[None]])
    num_rest = int(rest.sum())
    return torch.cat([p, (p_rest / max(num_rest, 1)).expand(num_rest)]), torch.cat([q, q_V[rest]])


def divergence(p, q, beta, kind):
    if kind == "total_variation":
        return 0.5 * (p - q).abs().sum()
    has_p = p > 0
    if beta == 0:
        return (p[has_p] * (p[has_p].log() - q[has_p].log())).sum()
    if beta == 1:
        return (q * (q.log() - p.log())).sum()
    middle = beta * p + (1 - beta) * q
    forward = (p[has_p] * (p[has_p].log() - middle[has_p].log())).sum()
    has_q = q > 0
    backward = (q[has_q] * (q[has_q].log() - middle[has_q].log())).sum()
    return beta * forward + (1 - beta) * backward


def reference(logits_BTV, case, settings, num_items):
    total, num_labels = logits_BTV.new_zeros(()), 0
    for b, t in itertools.product(range(case["labels"].shape[0]), range(1, case["labels"].shape[1])):
        label = int(case["labels"][b, t])
        if label == -100:
            continue
        num_labels += 1
        row_V = logits_BTV[b, t - 1]
        total = total - (1 - settings.alpha) * torch.log_softmax(row_V, 0)[label]
        ids = case["ids"][b, t, : int(case["counts"][b, t])]
        if len(ids):
            p, q = distributions(row_V, case["teacher"][b, t], ids, settings.temperature, settings.tail)
            loss = divergence(p, q, settings.beta, settings.divergence)
            total = total + settings.alpha * settings.temperature**2 * loss
    return total / (num_labels if num_items is None else num_items)


def make_case(seed, top_k, temperature, *, ragged):
    random = torch.Generator().manual_seed(seed)
    shape = (2, 6)
    teacher = torch.randn(*shape, VOCAB_SIZE, generator=random, dtype=torch.float64) * 2.5
    logprobs = torch.log_softmax(teacher / temperature, -1)
    ids = teacher.argsort(-1, descending=True)[..., :top_k]
    counts = torch.full(shape, top_k)
    if ragged:
        counts = torch.randint(0, top_k + 1, shape, generator=random)
    labels = torch.randint(0, VOCAB_SIZE, shape, generator=random)
    masked = torch.rand(shape, generator=random) < 0.3
    masked[:, 1] = False
    labels[masked] = -100
    mask = torch.arange(top_k).expand(*shape, top_k) < counts[..., None]
    stored = torch.zeros(*shape, VOCAB_SIZE + 1, dtype=torch.bool)
    stored.scatter_(-1, torch.where(mask, ids, VOCAB_SIZE), True)
    targets = TeacherTargets(
        torch.where(mask, ids, 0),
        logprobs.gather(-1, ids).masked_fill(~mask, -math.inf),
        logprobs.masked_fill(stored[..., :-1], -math.inf).logsumexp(-1),
        mask,
    )
    weights = [
        torch.randn(*size, generator=random, dtype=torch.float64)
        for size in ((*shape, HIDDEN_SIZE), (VOCAB_SIZE, HIDDEN_SIZE), (VOCAB_SIZE,))
    ]
    weights[0] *= 3
    known = {"labels": labels, "ids": ids, "counts": counts, "teacher": logprobs.exp()}
    return known, targets, weights


def with_gradients(compute, weights):
    own = [weight.clone().requires_grad_() for weight in weights]
    loss = compute(*own)
    gradients = torch.autograd.grad(loss, own, allow_unused=True)
    return loss, [
        torch.zeros_like(weight) if found is None else found
        for found, weight in zip(gradients, own, strict=True)
    ]


def check(settings, seed, top_k):
    known, targets, weights = make_case(seed, top_k, settings.temperature, ragged=seed % 2 == 0)
    num_items, labels = None if seed % 2 else 7, known["labels"]

    def defined(hidden, weight, bias):
        return reference(hidden @ weight.t() + bias, known, settings, num_items)

    def dense(hidden, weight, bias):
        logits = hidden @ weight.t() + bias
        return TopKDistillationLoss(settings)(logits, labels, targets, num_items_in_batch=num_items).loss

    def fused(hidden, weight, bias):
        loss = FusedLinearTopKDistillationLoss(settings, chunk_rows=3)
        return loss(hidden, weight, labels, targets, bias_V=bias, num_items_in_batch=num_items).loss

    expected, gradients = with_gradients(defined, weights)
    for compute in (dense, fused):
        found, found_gradients = with_gradients(compute, weights)
        assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12), (settings, top_k)
        for ours, theirs in zip(found_gradients, gradients, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-9), (settings, top_k)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_loss_and_gradients_are_those_of_the_definition(temperature, alpha):
    cases = list(itertools.product(FORMULAS, enumerate(TOP_KS)))
    assert len(cases) * len(TEMPERATURES) * len(ALPHAS) == 864
    for (tail, beta, kind), (seed, top_k) in cases:
        settings = LossSettings(temperature=temperature, alpha=alpha, beta=beta, divergence=kind, tail=tail)
        check(settings, seed, top_k)
