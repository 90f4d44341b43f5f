"""Training a student whose weights are integers when it is used: fake quantisation, and its export.

The layers keep weights of full precision and compute with what rounding makes of them; the gradient passes
the rounding as if it were not there (a straight-through estimator, Bengio et al. 2013, arXiv 1308.3432).
Names and shapes of the weights stay, so checkpoints, resuming and several processes need nothing else.

Shape legend: O outputs and I inputs of a layer, G groups of inputs with a scale of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import SettingError


@dataclass(frozen=True, slots=True)
class WeightQuantization:
    """Symmetric integers for the weights of every linear layer but the head; activations stay."""

    bits: Literal[4, 8]
    group_size: int | None = None
    """Inputs that share a scale; None: one scale for each output."""


def fake_quantized(weight_OI: Tensor, quantization: WeightQuantization) -> Tensor:
    """The nearest weights that the integers can hold; to the gradient it is the identity."""
    with torch.no_grad():
        scale_OG1 = weight_scales(weight_OI, quantization).unsqueeze(2)
        weight_OGI = weight_OI.unflatten(1, (scale_OG1.shape[1], -1))
        largest = 2 ** (quantization.bits - 1) - 1
        integers_OGI = (weight_OGI / scale_OG1).round().clamp(-largest - 1, largest)
        change_OI = (integers_OGI * scale_OG1).flatten(1) - weight_OI
    return weight_OI + change_OI


def weight_scales(weight_OI: Tensor, quantization: WeightQuantization) -> Tensor:
    """[O, G], by which the largest weight of each group is the largest integer."""
    groups = 1 if quantization.group_size is None else weight_OI.shape[1] // quantization.group_size
    largest_OG = weight_OI.detach().unflatten(1, (groups, -1)).abs().amax(dim=2)
    return (largest_OG / (2 ** (quantization.bits - 1) - 1)).clamp(min=torch.finfo(weight_OI.dtype).tiny)


class FakeQuantizedLinear(nn.Linear):
    """A linear layer that computes with rounded weights. Made of one that exists, see `fake_quantize`."""

    quantization: WeightQuantization

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, fake_quantized(self.weight, self.quantization), self.bias)


def fake_quantize(model: Any, quantization: WeightQuantization) -> int:
    """Make every linear layer but the output head compute with rounded weights; returns how many.

    Raises SettingError for a model without such layers, or if the inputs of one are no multiple of a group.
    """
    layers = _layers(model)
    if not layers:
        raise SettingError(
            f"{type(model).__name__} has no linear layer besides its head, so quantisation would change "
            "nothing; leave it out (student.quantize in a configuration)"
        )
    for name, layer in layers.items():
        if quantization.group_size is not None and layer.in_features % quantization.group_size:
            raise SettingError(
                f"the layer {name} has {layer.in_features} inputs, which is no multiple of "
                f"group_size={quantization.group_size}; give one that divides the inputs of all layers "
                "(student.quantize_group_size in a configuration)"
            )
    for layer in layers.values():
        layer.__class__ = FakeQuantizedLinear
        layer.quantization = quantization  # type: ignore[assignment]  # of the class it has now
    return len(layers)


def bytes_left_out(model: Any, quantization: WeightQuantization) -> int:
    """By how much what `save_quantized` writes is smaller than the weights of the model."""
    return sum(
        layer.weight.numel() * layer.weight.element_size() - _packed_bytes(layer, quantization)
        for layer in _layers(model).values()
    )


def _packed_bytes(layer: nn.Linear, quantization: WeightQuantization) -> int:
    """The integers of each output in whole words of 32 bits, their scales, and the shape."""
    words = -(-layer.in_features * quantization.bits // 32)
    groups = layer.in_features // (quantization.group_size or layer.in_features)
    return layer.out_features * (4 * words + groups * layer.weight.element_size()) + 16


def save_quantized(model: Any, quantization: WeightQuantization, folder: Path) -> None:
    """Save the model with its weights as integers, in the format of compressed-tensors, which transformers
    loads. The model in memory is used up."""
    try:
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationConfig,
            QuantizationScheme,
            apply_quantization_config,
        )
    except ImportError as error:
        raise SettingError(
            "saving a quantised student needs the package compressed-tensors: "
            "pip install 'penumbra-distill[quantize]'"
        ) from error
    layers = _layers(model)
    weights = QuantizationArgs(
        num_bits=quantization.bits,
        type="int",  # type: ignore[arg-type]  # a word of its enumeration
        symmetric=True,
        strategy="channel" if quantization.group_size is None else "group",  # type: ignore[arg-type]
        group_size=quantization.group_size,
    )
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    for layer in layers.values():
        layer.__class__ = nn.Linear
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=head))
    for layer in layers.values():
        layer.weight_scale.data.copy_(weight_scales(layer.weight, quantization))  # type: ignore[union-attr]
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format="pack-quantized")
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


def _layers(model: Any) -> dict[str, nn.Linear]:
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, FakeQuantizedLinear) and module is not head
    }
