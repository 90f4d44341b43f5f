"""In which precision the teacher's output head gives its logits. Imports neither torch nor vllm.

A product of bf16 or fp16 weights is summed in fp32 and then rounded: large bf16 logits end up 0.125 apart.
vLLM's float32 head keeps the sums. On CUDA and ROCm it does so at the price of the half-precision product
(`torch.mm(..., out_dtype=torch.float32)`); elsewhere it casts the whole weight to float32 in every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from labeler.config.teacher_settings import TeacherConfig

SUMS_SUFFIX = "_float32_sums"
"""Behind the dtype of the weights in a manifest: their product kept its float32 sums."""
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""Keys of config.json by which a model says that its weights are quantised."""

Head = Literal["model", "float32_sums", "float32"]


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """How the head computes, and why."""

    head: Head
    """"model": in the dtype of the weights; "float32_sums": their product without its last rounding;
    "float32": vLLM's float32 head, whatever it does on this platform."""
    reason: str
    """The second half of a sentence, for the log and the dry run."""

    @property
    def in_words(self) -> str:
        """The choice and its reason."""
        ways = {
            "model": "rounded to the dtype of the weights",
            "float32_sums": "float32 sums of the half-precision product",
            "float32": "vLLM's float32 head",
        }
        return f"{ways[self.head]}, {self.reason}"

    def dtype_of_logits(self, model_dtype: str, head_dtype: str) -> str:
        """`teacher.dtype` of a manifest, by the dtypes of the weights and of the head in the engine."""
        if head_dtype == model_dtype:
            return model_dtype
        return model_dtype + SUMS_SUFFIX if self.head == "float32_sums" else head_dtype


def choose_head(teacher: TeacherConfig, model_config: Mapping[str, Any], *, on_gpu: bool) -> HeadChoice:
    """What `teacher.head_dtype` means for the model of this config.json, on a GPU (CUDA or ROCm) or without.

    Raises ValueError for "float32_sums" where there is no GPU.
    """
    wanted = teacher.head_dtype
    if wanted == "float32_sums" and not on_gpu:
        raise ValueError(
            'teacher.head_dtype = "float32_sums" needs a GPU (CUDA or ROCm), whose matrix product can keep '
            'its float32 sums; set it to "float32", which casts the head\'s weight, or to "model"'
        )
    if wanted != "auto":
        return HeadChoice(wanted, f'as teacher.head_dtype = "{wanted}" says')
    if not on_gpu:
        return HeadChoice("model", "as without a GPU a float32 head casts its whole weight in every step")
    if teacher.dtype == "float32":
        return HeadChoice("model", "as the weights are float32")
    if teacher.quantization is not None or _is_quantised(model_config):
        return HeadChoice(
            "model",
            "as the weights are quantised and vLLM refuses a float32 head where the head is too (if it is "
            'not, set teacher.head_dtype = "float32_sums")',
        )
    return HeadChoice("float32_sums", "as half-precision weights on a GPU keep the sums of their product")


def _is_quantised(model_config: Mapping[str, Any]) -> bool:
    places = [model_config, model_config.get("text_config") or {}]
    return any(place.get(key) for place in places for key in QUANTIZATION_KEYS)
