"""The formulas that people bring along, written with plain PyTorch, against the settings of the trainer's page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.trainer.loss.reference_loss import Case, make_case
from trainer import LossSettings, TopKDistillationLoss, naive_topk_loss

V, K = 23, 5


def shifted(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student logits, teacher logits and labels of the positions whose label counts, [N, V], [N, V], [N]."""
    counts = case.labels[:, 1:] != -100
    return case.student_logits[:, :-1][counts], case.teacher_logits[:, 1:][counts], case.labels[:, 1:][counts]


def soft(student_NV: torch.Tensor, teacher_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) per token, over all columns given."""
    return temperature**2 * functional.kl_div(
        functional.log_softmax(student_NV / temperature, -1),
        functional.log_softmax(teacher_NV / temperature, -1),
        log_target=True,
        reduction="batchmean",
    )


def ours(case: Case, settings: LossSettings) -> torch.Tensor:
    return TopKDistillationLoss(settings)(case.student_logits, case.labels, case.targets).loss


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.7])
def test_alpha_is_the_weight_of_the_soft_part(temperature: float, weight: float) -> None:
    """Hinton's and TRL's way; where alpha weighs the hard part, ours is 1 - alpha."""
    case = make_case(1, vocab_size=V, top_k=V, temperature=temperature)
    student, teacher, labels = shifted(case)
    kl, hard = soft(student, teacher, temperature), functional.cross_entropy(student, labels)
    weight_of_soft = ours(case, LossSettings(temperature=temperature, alpha=weight))
    torch.testing.assert_close(
        weight_of_soft, weight * kl + (1 - weight) * hard, rtol=1e-6, atol=0, check_dtype=False
    )
    weight_of_hard = ours(case, LossSettings(temperature=temperature, alpha=1 - weight))
    torch.testing.assert_close(
        weight_of_hard, weight * hard + (1 - weight) * kl, rtol=1e-6, atol=0, check_dtype=False
    )


@pytest.mark.parametrize("scaled", [True, False])
def test_without_the_square_of_the_temperature(scaled: bool) -> None:
    case = make_case(2, vocab_size=V, top_k=V, temperature=2.0)
    student, teacher, _ = shifted(case)
    settings = LossSettings(temperature=2.0, alpha=1.0, scale_by_temperature_squared=scaled)
    expected = soft(student, teacher, 2.0) / (1 if scaled else 4)
    torch.testing.assert_close(ours(case, settings), expected, rtol=1e-6, atol=0, check_dtype=False)


def test_top_k_renormalised() -> None:
    """Both sides renormalised over the stored entries: what DistillKit-like code without a tail computes."""
    case = make_case(3, vocab_size=V, top_k=K, temperature=2.0)
    student, teacher, _ = shifted(case)
    top = teacher.topk(K).indices
    expected = soft(student.gather(1, top), teacher.gather(1, top), 2.0)
    found = ours(case, LossSettings(temperature=2.0, alpha=1.0, tail="renormalize"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, check_dtype=False)


def test_top_k_with_the_students_whole_softmax() -> None:
    """The teacher renormalised over the stored entries, the student not: tail="zero"."""
    case = make_case(4, vocab_size=V, top_k=K)
    student, teacher, _ = shifted(case)
    top = teacher.topk(K).indices
    p = functional.log_softmax(teacher.gather(1, top), -1)
    q = functional.log_softmax(student, -1).gather(1, top)
    expected = (p.exp() * (p - q)).sum(-1).mean()
    found = ours(case, LossSettings(alpha=1.0, tail="zero"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, check_dtype=False)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_generalised_jsd(beta: float) -> None:
    """GKD's beta (arXiv 2306.13649): beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q."""
    case = make_case(5, vocab_size=V, top_k=V)
    student, teacher, _ = shifted(case)
    p, q = functional.softmax(teacher, -1), functional.softmax(student, -1)
    m = beta * p + (1 - beta) * q
    expected = (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum(-1).mean()
    found = ours(case, LossSettings(alpha=1.0, beta=beta))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, check_dtype=False)


def test_reverse_kl() -> None:
    case = make_case(6, vocab_size=V, top_k=V)
    student, teacher, _ = shifted(case)
    p, q = functional.log_softmax(teacher, -1), functional.log_softmax(student, -1)
    expected = (q.exp() * (q - p)).sum(-1).mean()
    found = ours(case, LossSettings(alpha=1.0, beta=1.0))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, check_dtype=False)


def test_batchmean_is_the_mean_per_token_times_the_tokens_of_a_row() -> None:
    """`kl_div(..., "batchmean")` on [B, T, K], as tutorials have it, is larger by the number of tokens."""
    case = make_case(7, vocab_size=V, top_k=K, temperature=2.0)
    labels = case.labels.clone()
    labels[labels == -100] = 0
    whole = Case(case.student_logits, case.teacher_logits, labels, case.targets)
    per_token = ours(whole, LossSettings(temperature=2.0, alpha=1.0, tail="renormalize"))
    num_tokens = labels.shape[1] - 1
    naive = naive_topk_loss(case.student_logits, case.targets, 2.0)
    torch.testing.assert_close(naive, per_token * num_tokens, rtol=1e-6, atol=0, check_dtype=False)


def test_each_row_of_the_page_has_a_test() -> None:
    page = (Path(__file__).parents[3] / "trainer" / "README.md").read_text(encoding="utf-8")
    section = page.split("## Your formula in our settings")[1].split("\n## ")[0]
    table = next(part for part in section.split("\n\n") if part.startswith("| formula "))
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    named = {line.split("`test_")[1].split("`")[0] for line in rows}
    assert named == {
        name.removeprefix("test_")
        for name in globals()
        if name.startswith("test_") and name != "test_each_row_of_the_page_has_a_test"
    }
