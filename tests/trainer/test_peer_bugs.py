"""Mistakes found in other implementations, each by name: the exact losses must not have them.

Every test runs on both forms of the loss: on logits (`dense`) and fused with the projection (`fused`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.trainer.loss.reference_loss import make_case, reference_loss
from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.loss_inputs import LossOutput, TeacherTargets
from trainer.loss.loss_settings import LossSettings, Tail
from trainer.loss.losses import naive_topk_loss, topk_distillation_loss

Loss = Callable[..., LossOutput]
KINDS: list[dict[str, Any]] = [{}, {"beta": 1.0}, {"beta": 0.5}, {"divergence": "total_variation"}]


def fused_on_logits(logits, labels, targets, settings, *, num_items_in_batch=None):
    """The fused loss with the identity as its weight: hidden states are logits."""
    weight = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return fused_linear_topk_distillation_loss(
        logits, weight, labels, targets, settings, chunk_rows=3, num_items_in_batch=num_items_in_batch
    )


@pytest.fixture(params=[topk_distillation_loss, fused_on_logits], ids=["dense", "fused"])
def loss_of(request: pytest.FixtureRequest) -> Loss:
    return request.param


def gradient(loss_of, logits, *arguments, **options) -> torch.Tensor:
    leaf = logits.detach().clone().requires_grad_()
    loss_of(leaf, *arguments, **options).loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def one_row(logprobs: list[float], tail: float, ids: list[int]) -> TeacherTargets:
    """Targets of a sequence of two tokens: a row for position 1, nothing at 0."""
    width = len(ids)
    return TeacherTargets(
        token_ids_BTK=torch.tensor([[[0] * width, ids]]),
        logprobs_BTK=torch.tensor([[[-torch.inf] * width, logprobs]]),
        tail_logprob_BT=torch.tensor([[0.0, tail]]),
        mask_BTK=torch.tensor([[[False] * width, [True] * width]]),
    )


def test_temperature_squared_only_in_the_reported_value(loss_of):
    """axolotl scales the loss it reports by T^2, the gradients it saved beforehand not."""
    case = make_case(1, temperature=2.0)
    settings = LossSettings(temperature=2.0, alpha=1.0)
    arguments = (case.labels, case.targets, settings)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(case.student_logits.shape, generator=generator, dtype=torch.float64)
    step = 1e-6
    rise = loss_of(case.student_logits + step * direction, *arguments).loss
    fall = loss_of(case.student_logits - step * direction, *arguments).loss
    slope = (gradient(loss_of, case.student_logits, *arguments) * direction).sum()
    assert slope.item() == pytest.approx(((rise - fall) / (2 * step)).item(), rel=1e-6)


def test_cross_entropy_missing_from_the_backward_pass(loss_of):
    """axolotl #3660: cross-entropy was in the number logged and not in the gradient."""
    case = make_case(2)
    mixed, hard, soft = (
        gradient(loss_of, case.student_logits, case.labels, case.targets, LossSettings(alpha=alpha))
        for alpha in (0.5, 0.0, 1.0)
    )
    assert hard.abs().max() > 0.01
    torch.testing.assert_close(mixed, 0.5 * hard + 0.5 * soft)


def test_label_mask_off_by_one(loss_of):
    """DistillKit masks unshifted logits by labels: it drops the first token of a response and adds one."""
    case = make_case(3, batch=1)
    labels = torch.full_like(case.labels, -100)
    labels[0, 4:6] = torch.tensor([7, 9])
    for settings in (LossSettings(alpha=1.0), LossSettings(alpha=0.0)):
        grads = gradient(loss_of, case.student_logits, labels, case.targets, settings)
        assert grads[0].abs().sum(-1).nonzero().flatten().tolist() == [3, 4]


def test_teacher_row_off_by_one(loss_of):
    """The loss vanishes exactly when logits t - 1 are the teacher's row t, not when they are its row t - 1."""
    case = make_case(4)
    aligned = torch.zeros_like(case.teacher_logits)
    aligned[:, :-1] = case.teacher_logits[:, 1:]
    settings = LossSettings(alpha=1.0)
    assert abs(loss_of(aligned, case.labels, case.targets, settings).loss.item()) < 1e-12
    assert loss_of(case.teacher_logits, case.labels, case.targets, settings).loss.item() > 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("height", [20.0, 90.0, 500.0, 1e4])
def test_nan_when_both_masses_saturate(loss_of, kind, temperature, height):
    """DistillKit: clamp(max=1 - 1e-8) is 1 in float32, so log1p(-1) is -inf and the loss NaN."""
    targets = one_row([math.log(1 - 1e-9), -22.0], -60.0, [3, 8])
    labels = torch.tensor([[-100, 3]])
    settings = LossSettings(temperature=temperature, **kind)
    for on_target in (True, False):
        logits = torch.zeros(1, 2, 12)
        logits[0, 0, 3 if on_target else 5] = height
        output = loss_of(logits, labels, targets, settings)
        grads = gradient(loss_of, logits, labels, targets, settings)
        assert output.loss.isfinite()
        assert grads.isfinite().all()
        assert on_target or grads.abs().max() > 0.4


@pytest.mark.parametrize("tail", [0.0, -torch.inf])
def test_nan_when_the_teacher_is_certain(loss_of, tail):
    """A row whose tail or whose stored mass is exactly zero."""
    stored = -torch.inf if tail == 0.0 else 0.0
    targets = one_row([stored], tail, [2])
    logits, labels = torch.randn(1, 2, 6, generator=torch.manual_seed(0)), torch.tensor([[-100, 1]])
    for kind in KINDS:
        settings = LossSettings(alpha=1.0, **kind)
        assert loss_of(logits, labels, targets, settings).loss.isfinite()
        assert gradient(loss_of, logits, labels, targets, settings).isfinite().all()


def test_tail_of_a_confident_student_by_subtraction(loss_of):
    """log(1 - sum) in float32 is noise, or clamped at -16.1 without a gradient (TRL): here log t_q = -37.6."""
    logits = torch.zeros(1, 2, 12)
    logits[0, 0, 3] = 40.0
    targets = one_row([math.log(0.5)], math.log(0.5), [3])
    settings = LossSettings(alpha=1.0)
    expected = reference_loss(logits, torch.tensor([[-100, 3]]), targets, settings)
    output = loss_of(logits, torch.tensor([[-100, 3]]), targets, settings)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert output.loss.item() > 18
    grads = gradient(loss_of, logits, torch.tensor([[-100, 3]]), targets, settings)
    assert grads[0, 0, 3].item() == pytest.approx(0.5, rel=1e-5)
    torch.testing.assert_close(grads[0, 0, 4], torch.tensor(-0.5 / 11), rtol=1e-5, atol=0)


def test_captured_tensors_changed_in_place(loss_of):
    """`-=` on logits that the caller still holds."""
    case = make_case(5, temperature=2.0, ragged=True, dtype=torch.float32)
    logits = case.student_logits.requires_grad_()
    before = copy.deepcopy((logits.detach(), case.labels, case.targets))
    loss_of(logits, case.labels, case.targets, LossSettings(temperature=2.0)).loss.backward()
    after = (logits.detach(), case.labels, case.targets)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    for name in ("token_ids_BTK", "logprobs_BTK", "tail_logprob_BT", "mask_BTK"):
        assert torch.equal(getattr(before[2], name), getattr(after[2], name))


def test_batchmean_grows_with_the_sequence(loss_of):
    """`batchmean` on [B, T, K] is the per-token mean times T; a mean over labels does not see the length."""
    case = make_case(6, tokens=2)
    case.labels[:, 1] = 4

    def repeated(times: int) -> tuple[torch.Tensor, torch.Tensor, TeacherTargets]:
        def tile(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat(1, times, *[1] * (tensor.ndim - 2))

        targets = TeacherTargets(
            token_ids_BTK=tile(case.targets.token_ids_BTK),
            logprobs_BTK=tile(case.targets.logprobs_BTK),
            tail_logprob_BT=tile(case.targets.tail_logprob_BT),
            mask_BTK=tile(case.targets.mask_BTK),
        )
        labels = torch.full((2, 2 * times), -100)
        labels[:, 1::2] = 4
        return tile(case.student_logits), labels, targets

    settings = LossSettings()
    short, long = (loss_of(*repeated(times), settings).loss.item() for times in (1, 64))
    assert long == pytest.approx(short, rel=1e-12)
    logits, _, targets = repeated(64)
    naive_short = naive_topk_loss(case.student_logits, case.targets).item()
    assert naive_topk_loss(logits, targets).item() > 63 * naive_short


def test_no_gradient_outside_the_stored_ids(loss_of):
    """The naive loss teaches nothing about the mass outside S: at K=1 it is zero whatever the student does."""
    targets = one_row([math.log(0.9)], math.log(0.1), [3])
    logits = torch.zeros(1, 2, 12, requires_grad=True)
    naive = naive_topk_loss(logits, targets)
    naive.backward()
    assert naive.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
    grads = gradient(loss_of, logits, torch.tensor([[-100, 3]]), targets, LossSettings(alpha=1.0))
    off = [v for v in range(12) if v != 3]
    assert (grads[0, 0, off] > 0.05).all()
    assert grads[0, 0, 3].item() == pytest.approx(1 / 12 - 0.9, rel=1e-5)


def test_overconfident_optimum_of_the_truncated_loss(loss_of):
    """Training to the end recovers the teacher's masses, not p_k divided by the stored mass (2503.16870)."""
    p = torch.tensor([0.3, 0.2, 0.1])
    targets = one_row(p.log().tolist(), math.log(0.4), [3, 8, 1])
    mass = {}
    tails: tuple[Tail, Tail] = ("bucket", "zero")
    for tail in tails:
        logits = torch.zeros(1, 2, 12, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

        settings = LossSettings(alpha=1.0, tail=tail)

        def closure(logits=logits, optimizer=optimizer, settings=settings):
            optimizer.zero_grad()
            loss = loss_of(logits, torch.tensor([[-100, 3]]), targets, settings).loss
            loss.backward()
            return loss

        optimizer.step(closure)
        mass[tail] = torch.softmax(logits.detach()[0, 0], 0)[[3, 8, 1]]
    torch.testing.assert_close(mass["bucket"], p, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mass["zero"], p / p.sum(), rtol=1e-2, atol=1e-3)


def test_negative_loss_is_clamped_and_loses_its_gradient(loss_of):
    """verl drops the tail, so the sum turns negative when the student covers S too well, and clamps it at 0."""
    targets = one_row([math.log(0.3), math.log(0.2)], math.log(0.5), [3, 8])
    logits = torch.zeros(1, 2, 12)
    logits[0, 0, [3, 8]] = 6.0
    log_q = torch.log_softmax(logits[0, 0], 0)[[3, 8]]
    p = torch.tensor([0.3, 0.2])
    assert (p * (p.log() - log_q)).sum() < 0
    output = loss_of(logits, torch.tensor([[-100, 3]]), targets, LossSettings(alpha=1.0))
    grads = gradient(loss_of, logits, torch.tensor([[-100, 3]]), targets, LossSettings(alpha=1.0))
    assert output.loss.item() > 0.5
    assert grads[0, 0, 3].item() > 0.15


def test_logsumexp_in_bfloat16(loss_of):
    """DistillKit casts logsumexp back to bf16: at logits near 24 each log-probability is 0.03 nats off."""
    case = make_case(7, vocab_size=200, top_k=16)
    logits = (case.student_logits + 20).bfloat16()
    settings = LossSettings()
    expected = reference_loss(logits.double(), case.labels, case.targets, settings)
    assert loss_of(logits, case.labels, case.targets, settings).loss.item() == pytest.approx(
        expected, rel=1e-5
    )


def test_exponential_without_the_maximum_overflows(loss_of):
    """NeMo-Aligner takes exp() of raw logits."""
    case = make_case(8, dtype=torch.float32)
    settings = LossSettings()
    plain = loss_of(case.student_logits, case.labels, case.targets, settings).loss.item()
    raised = loss_of(case.student_logits + 512, case.labels, case.targets, settings).loss.item()
    assert raised == pytest.approx(plain, rel=1e-4)


def test_padded_vocabulary_takes_probability(loss_of):
    """Liger pads missing student logits with zeros, which then have mass exp(0) each."""
    case = make_case(9)
    wide = torch.cat([case.student_logits, torch.zeros(2, 7, 9, dtype=torch.float64)], -1)
    exact = loss_of(case.student_logits, case.labels, case.targets, LossSettings()).loss.item()
    settings = LossSettings(vocab_size=23)
    assert loss_of(wide, case.labels, case.targets, settings).loss.item() == pytest.approx(exact, rel=1e-12)
    assert (gradient(loss_of, wide, case.labels, case.targets, settings)[..., 23:] == 0).all()
    assert loss_of(wide, case.labels, case.targets, LossSettings()).loss.item() != pytest.approx(
        exact, rel=1e-3
    )


@pytest.mark.parametrize("padding_id", [-1, 0, 131_071])
def test_sentinel_ids_reach_the_vocabulary(loss_of, padding_id):
    """Megatron's sentinel -1 packs into 17 bits as 131071. Padding ids, whatever they are, mean nothing."""
    case = make_case(10, ragged=True)
    exact = loss_of(case.student_logits, case.labels, case.targets, LossSettings()).loss.item()
    case.targets.token_ids_BTK[~case.targets.mask_BTK] = padding_id
    assert loss_of(case.student_logits, case.labels, case.targets, LossSettings()).loss.item() == exact


def test_gradient_accumulation_over_ragged_batches(loss_of):
    """TRL #4719: the mean of per-batch means is not the mean over tokens."""
    case = make_case(12)
    counts = [int((case.labels[row, 1:] != -100).sum()) for row in range(2)]
    assert counts[0] != counts[1]
    whole = gradient(loss_of, case.student_logits, case.labels, case.targets, LossSettings())
    for number in (sum(counts), torch.tensor(sum(counts))):
        parts = []
        for row in range(2):
            one = slice(row, row + 1)
            targets = TeacherTargets(
                case.targets.token_ids_BTK[one],
                case.targets.logprobs_BTK[one],
                case.targets.tail_logprob_BT[one],
                case.targets.mask_BTK[one],
            )
            parts.append(
                gradient(
                    loss_of,
                    case.student_logits[one],
                    case.labels[one],
                    targets,
                    LossSettings(),
                    num_items_in_batch=number,
                )
            )
        torch.testing.assert_close(torch.cat(parts), whole)


def test_prompt_and_padding_rows_in_the_loss(loss_of):
    """Rows whose label is ignored change nothing, even when both sides are NaN there."""
    case = make_case(14)
    settings = LossSettings()
    expected = loss_of(case.student_logits, case.labels, case.targets, settings).loss.item()
    case.student_logits[0, 1:3] = torch.nan
    case.targets.logprobs_BTK[0, 2:4] = torch.nan
    case.targets.tail_logprob_BT[0, 2:4] = torch.nan
    case.targets.token_ids_BTK[0, 2:4] = 10**6
    assert loss_of(case.student_logits, case.labels, case.targets, settings).loss.item() == expected
    assert gradient(loss_of, case.student_logits, case.labels, case.targets, settings).isfinite().all()


def test_tail_at_a_temperature_guessed_from_the_tail_at_one(loss_of):
    """DistillKit takes leftover^(1/T) for the tail at T. With the stored tail the bucket loss stays exact."""
    case = make_case(15, vocab_size=400, top_k=16, temperature=2.0)
    settings = LossSettings(temperature=2.0, alpha=1.0)
    exact = reference_loss(case.student_logits, case.labels, case.targets, settings)
    assert loss_of(case.student_logits, case.labels, case.targets, settings).loss.item() == pytest.approx(
        exact, rel=1e-12
    )
    at_one = make_case(15, vocab_size=400, top_k=16).targets
    powers = at_one.logprobs_BTK / 2
    guessed_tail = at_one.tail_logprob_BT / 2
    log_total = torch.logaddexp(powers.logsumexp(-1), guessed_tail)
    guessed = TeacherTargets(
        token_ids_BTK=at_one.token_ids_BTK,
        logprobs_BTK=powers - log_total.unsqueeze(-1),
        tail_logprob_BT=guessed_tail - log_total,
        mask_BTK=at_one.mask_BTK,
    )
    assert abs(loss_of(case.student_logits, case.labels, guessed, settings).loss.item() - exact) > 0.1
