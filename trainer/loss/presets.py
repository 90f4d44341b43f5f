"""Common formulas of others by name: what each is in our settings. Without torch, as configurations read it.

Our mean is per label of the whole step; where a recipe divides by rows or padding instead, that is a factor
of the learning rate.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["hinton", "trl_gkd", "distillkit", "megatron", "torchtune", "pytorch_tutorial"]

PRESETS: dict[Preset, dict[str, Any]] = {
    # alpha T^2 KL + (1 - alpha) CE, with much more weight on the soft part (Hinton et al. 2015).
    "hinton": {"temperature": 2.0, "alpha": 0.9, "beta": 0.0, "scale_by_temperature_squared": True},
    # GKDTrainer: generalised JSD at beta = 0.5 and T = 1, no cross-entropy.
    "trl_gkd": {"temperature": 1.0, "alpha": 1.0, "beta": 0.5, "scale_by_temperature_squared": False},
    # alpha T^2 KL + (1 - alpha) CE with alpha = 0.5 and T = 2.
    "distillkit": {"temperature": 2.0, "alpha": 0.5, "beta": 0.0, "scale_by_temperature_squared": True},
    # LogitsKLLoss alone: logits divided by T, here 1, and no T^2; the loss on labels is left out.
    "megatron": {"temperature": 1.0, "alpha": 1.0, "beta": 0.0, "scale_by_temperature_squared": False},
    # kd_ratio = 0.5 of ForwardKLLoss at T = 1, the rest cross-entropy.
    "torchtune": {"temperature": 1.0, "alpha": 0.5, "beta": 0.0, "scale_by_temperature_squared": False},
    # 0.25 soft + 0.75 hard at T = 2, the soft part times T^2.
    "pytorch_tutorial": {
        "temperature": 2.0,
        "alpha": 0.25,
        "beta": 0.0,
        "scale_by_temperature_squared": True,
    },
}
"""Each with divergence "generalized_jsd" and tail "bucket": the formulas are over the whole vocabulary, to
which the bucket is nearest in stored labels."""


def with_preset(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with what their `preset` stands for; those that are given explicitly stay."""
    name = settings.get("preset")
    preset = PRESETS.get(name) if isinstance(name, str) else None  # type: ignore[arg-type]
    if preset is None:  # no name of one is refused later
        return settings
    return {"divergence": "generalized_jsd", "tail": "bucket", **preset, **settings}
