"""What counts in the loss and what does not: padding, rows without labels or entries, ids beyond a vocabulary."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from tests.trainer.loss.reference_loss import make_case, reference_loss
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss


def test_padding_entries_do_not_remove_id_0_from_the_tail():
    case = make_case(19, ragged=True)
    assert ((case.targets.token_ids_BTK == 0) & ~case.targets.mask_BTK).any()
    logits = case.student_logits.requires_grad_()
    loss_settings = LossSettings(alpha=1.0)
    padded = topk_distillation_loss(logits, case.labels, case.targets, loss_settings, num_items_in_batch=1)
    (padded_grad,) = torch.autograd.grad(padded.loss, logits)
    total, grads = 0.0, torch.zeros_like(logits)
    for row in range(2):
        for position in range(1, 7):
            count = int(case.targets.mask_BTK[row, position].sum())
            alone = TeacherTargets(
                token_ids_BTK=case.targets.token_ids_BTK[row : row + 1, :, :count],
                logprobs_BTK=case.targets.logprobs_BTK[row : row + 1, :, :count],
                tail_logprob_BT=case.targets.tail_logprob_BT[row : row + 1],
                mask_BTK=case.targets.mask_BTK[row : row + 1, :, :count],
            )
            labels = torch.full((1, 7), -100)
            labels[0, position] = case.labels[row, position]
            output = topk_distillation_loss(
                logits[row : row + 1], labels, alone, loss_settings, num_items_in_batch=1
            )
            total += output.loss.item()
            grads += torch.autograd.grad(output.loss, logits)[0]
    assert padded.loss.item() == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(padded_grad, grads)


def test_row_without_entries_counts_only_for_cross_entropy():
    case = make_case(23)
    mask = case.targets.mask_BTK.clone()
    mask[1, 3] = False
    targets = dataclasses.replace(case.targets, mask_BTK=mask)
    labels = torch.full_like(case.labels, -100)
    labels[1, 3] = 5
    logits = case.student_logits.requires_grad_()
    output = topk_distillation_loss(logits, labels, targets, LossSettings(temperature=2.0, beta=1.0))
    expected = -torch.log_softmax(logits.detach()[1, 2], 0)[5].item()
    assert output.distillation.item() == 0
    assert output.cross_entropy.item() == pytest.approx(expected, rel=1e-12)
    output.loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_alpha_zero_is_cross_entropy_and_needs_no_teacher():
    case = make_case(29, dtype=torch.float32)
    output = topk_distillation_loss(case.student_logits, case.labels, None, LossSettings(alpha=0.0))
    expected = functional.cross_entropy(
        case.student_logits[:, :-1].flatten(0, 1), case.labels[:, 1:].flatten()
    )
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"alpha=0\.5 needs teacher targets"):
        topk_distillation_loss(case.student_logits, case.labels, None, LossSettings())


def test_batch_without_labels_is_zero_with_a_gradient():
    case = make_case(31)
    logits = case.student_logits.requires_grad_()
    output = topk_distillation_loss(logits, torch.full_like(case.labels, -100), case.targets, LossSettings())
    output.loss.backward()
    assert output.loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("num_items", [0, torch.tensor(0)])
def test_step_without_labels_is_zero_however_it_is_counted(num_items):
    case = make_case(31)
    logits = case.student_logits.requires_grad_()
    labels = torch.full_like(case.labels, -100)
    output = topk_distillation_loss(
        logits, labels, case.targets, LossSettings(), num_items_in_batch=num_items
    )
    output.loss.backward()
    assert logits.grad is not None
    assert (output.loss.item(), output.cross_entropy.item(), logits.grad.abs().max().item()) == (0, 0, 0)


def test_padded_student_vocabulary_takes_no_probability():
    case = make_case(37)
    wide = torch.cat(
        [case.student_logits, torch.full((2, 7, 5), 9.0, dtype=torch.float64)], -1
    ).requires_grad_()
    expected = topk_distillation_loss(case.student_logits, case.labels, case.targets, LossSettings())
    output = topk_distillation_loss(wide, case.labels, case.targets, LossSettings(vocab_size=23))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-14)
    assert wide.grad is not None
    assert (wide.grad[..., 23:] == 0).all()


def test_stored_ids_beyond_the_student_are_refused_or_moved_to_the_tail():
    case = make_case(41, vocab_size=30)
    student, labels = case.student_logits[..., :20], case.labels.clamp(max=19)
    with pytest.raises(ValueError, match=r"beyond the student's 20 ids.*foreign_ids='tail'"):
        topk_distillation_loss(student, labels, case.targets, LossSettings())
    output = topk_distillation_loss(
        student, labels, case.targets, LossSettings(alpha=1.0, foreign_ids="tail")
    )
    known = case.targets.token_ids_BTK < 20
    lost = case.targets.logprobs_BTK.exp().masked_fill(known, 0.0).sum(-1)
    folded = TeacherTargets(
        token_ids_BTK=case.targets.token_ids_BTK,
        logprobs_BTK=case.targets.logprobs_BTK,
        tail_logprob_BT=(case.targets.tail_logprob_BT.exp() + lost).log(),
        mask_BTK=known,
    )
    assert (lost > 0).any()
    expected = reference_loss(student, labels, folded, LossSettings(alpha=1.0))
    assert output.loss.item() == pytest.approx(expected, rel=1e-12)


def test_labels_and_ids_below_0_are_refused():
    """On a GPU an index below 0 is an assertion of the device, after which the process can do nothing more."""
    case = make_case(43)
    labels = case.labels.clone()
    labels[1, 3] = -1
    with pytest.raises(ValueError, match=r"The label -1 is no id and not the ignore_index of the loss, -100"):
        topk_distillation_loss(case.student_logits, labels, case.targets, LossSettings())
    ids = case.targets.token_ids_BTK.clone()
    ids[0, 1, 2] = -1
    broken = dataclasses.replace(case.targets, token_ids_BTK=ids)
    with pytest.raises(ValueError, match=r"Stored id -1 is no id.*let the mask be False"):
        topk_distillation_loss(case.student_logits, case.labels, broken, LossSettings())
