"""What each `loss.preset` computes, against the recipe written with plain PyTorch over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainer.loss.reference_loss import Case, make_case
from trainer import LossSettings, TopKDistillationLoss
from trainer.loss.presets import PRESETS, Preset
from trainer.run.config import LossConfig, load_config, resolved

V = 23
Recipe = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Loss of student logits [N, V], teacher logits [N, V] and labels [N]."""


def soft_and_hard(temperature: float, weight: float) -> Recipe:
    def loss(student_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor) -> Tensor:
        targets_NV = (teacher_NV / temperature).softmax(-1)
        logprobs_NV = (student_NV / temperature).log_softmax(-1)
        soft = functional.kl_div(logprobs_NV, targets_NV, reduction="batchmean") * temperature**2
        return weight * soft + (1 - weight) * functional.cross_entropy(student_NV, labels_N)

    return loss


def generalised_jsd(student_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor) -> Tensor:
    q_NV, p_NV = student_NV.softmax(-1), teacher_NV.softmax(-1)
    m_NV = 0.5 * p_NV + 0.5 * q_NV
    per_token_N = (0.5 * p_NV * (p_NV / m_NV).log() + 0.5 * q_NV * (q_NV / m_NV).log()).sum(-1)
    return per_token_N.sum() / len(labels_N)


def kl_alone(student_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor) -> Tensor:
    p_NV = teacher_NV.softmax(-1)
    return (p_NV * (p_NV.log() - student_NV.log_softmax(-1))).sum(-1).mean()


def forward_kl_and_hard(student_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Its "KL" is the cross-entropy with the teacher, so the teacher's entropy is taken off it here."""
    p_NV = teacher_NV.softmax(-1)
    soft = -(p_NV * student_NV.log_softmax(-1)).sum(-1).mean()
    entropy = -(p_NV * p_NV.log()).sum(-1).mean()
    return 0.5 * functional.cross_entropy(student_NV, labels_N) + 0.5 * (soft - entropy)


RECIPES: dict[Preset, Recipe] = {
    "hinton": soft_and_hard(2.0, 0.9),
    "trl_gkd": generalised_jsd,
    "distillkit": soft_and_hard(2.0, 0.5),
    "megatron": kl_alone,
    "torchtune": forward_kl_and_hard,
    "pytorch_tutorial": soft_and_hard(2.0, 0.25),
}


def settings_of(config: LossConfig) -> LossSettings:
    return LossSettings(
        temperature=config.temperature,
        alpha=config.alpha,
        beta=config.beta,
        divergence=config.divergence,
        tail=config.tail,
        scale_by_temperature_squared=config.scale_by_temperature_squared,
    )


def counted(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    counts = case.labels[:, 1:] != -100
    return case.student_logits[:, :-1][counts], case.teacher_logits[:, 1:][counts], case.labels[:, 1:][counts]


@pytest.mark.parametrize("preset", get_args(Preset))
def test_a_preset_is_its_recipe(preset: Preset) -> None:
    settings = settings_of(LossConfig(preset=preset))
    case = make_case(11, vocab_size=V, top_k=V, temperature=settings.temperature)
    logits = case.student_logits.detach().requires_grad_()
    found = TopKDistillationLoss(settings)(logits, case.labels, case.targets).loss
    case = Case(logits, case.teacher_logits, case.labels, case.targets)
    expected = RECIPES[preset](*counted(case))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, check_dtype=False)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9, check_dtype=False)


def test_what_a_preset_stands_for_is_saved_and_given_settings_stay(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('[student]\nmodel = "m"\n[data]\nstores = ["s"]\n[output]\nfolder = "f"\n')
    config = load_config(str(path), ["loss.preset=pytorch_tutorial", "loss.temperature=3.0"])
    saved = resolved(config)["loss"]
    assert (saved["preset"], saved["temperature"], saved["alpha"]) == ("pytorch_tutorial", 3.0, 0.25)
    assert saved["scale_by_temperature_squared"] is True
    assert resolved(type(config).model_validate(resolved(config))) == resolved(config)


def test_every_preset_is_on_the_page() -> None:
    page = (Path(__file__).parents[3] / "trainer" / "README.md").read_text(encoding="utf-8")
    rows = page.split("| preset | stands for")[1].split("\n\n")[0].splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(PRESETS)
    for row, settings in zip(rows, PRESETS.values(), strict=True):
        assert f"T = {settings['temperature']:g}, alpha = {settings['alpha']:g}" in row
