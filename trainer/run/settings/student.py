"""[student]: the model that learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from logitstore.common.section import HomePath, Section
from logitstore.models.folder import check_loadable
from logitstore.models.hub import check_model_name


class SmallStudentConfig(Section):
    """A fresh Llama of a given size; its vocabulary is the tokenizer's."""

    hidden_size: int = Field(default=128, ge=8)
    """Width of the hidden states."""
    intermediate_size: int = Field(default=384, ge=8)
    """Width inside the MLPs."""
    num_layers: int = Field(default=2, ge=1)
    """Decoder layers."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; they divide hidden_size."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """None is one per head."""
    tie_embeddings: bool = True
    """Use the input embedding as the output head."""
    max_positions: int = Field(default=2048, ge=8)
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def _heads_divide(self) -> SmallStudentConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}"
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        return self


class LoraSettings(Section):
    """Train low-rank adapters instead of the student's weights. Needs the package peft."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters: alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    merge: bool = False
    """Save the whole student with the adapters merged into its weights, instead of the adapters alone."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get adapters; "all-linear" is every linear layer but the head. "lm_head" may
    be among the names, with loss.fused = false."""
    load_in_4bit: bool = False
    """QLoRA: hold the student's own weights in 4 bits (NF4). Needs the package bitsandbytes."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that are trained and saved whole beside the adapters; "lm_head" among them needs
    loss.fused = false."""
    trainable_tokens: tuple[int, ...] = ()
    """Ids whose rows of the input embedding are trained, such as tokens that were added. Where the head is
    tied to it, its rows are trained too, which needs loss.fused = false."""


class StudentConfig(Section):
    """The model that learns."""

    model: HomePath | None = None
    """Hugging Face id or folder of a causal language model to start from."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id; None is the newest."""
    small: SmallStudentConfig | None = None
    """Sizes of a fresh student, instead of `model`."""
    tokenizer: HomePath | None = None
    """Hugging Face id or folder of the tokenizer: the teacher's. None takes the one that the first store
    keeps, which is the teacher's, or, where none keeps one, the one beside `model`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the student's weights."""
    attn_implementation: str | None = None
    """Attention code of transformers: "sdpa", "eager", "flash_attention_2", or another name that it knows.
    None is its own choice, SDPA for most models."""
    lora: LoraSettings | None = None
    quantize: Literal["int8", "int4"] | None = None
    """Train a student whose weights, but for the head's, are rounded to integers in every forward pass, and
    save it as such, in the format of compressed-tensors. From the labels that `model` gave itself at full
    precision (loss.alpha = 1), this takes back what rounding lost: metrics.json has the KL before and after.
    Needs the extra `quantize`."""
    quantize_group_size: int | None = Field(default=None, ge=1)
    """Inputs that share a scale; None is 32 for "int4" and all inputs of an output for "int8"."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    @model_validator(mode="after")
    def _one_source(self) -> StudentConfig:
        if (self.model is None) == (self.small is None):
            raise ValueError(
                "give exactly one of student.model (a model to start from) and student.small (sizes)"
            )
        if self.quantize is not None and self.lora is not None:
            raise ValueError(
                f"quantize = {self.quantize!r} trains all weights as integers, lora adds adapters to "
                "weights that stay; give one"
            )
        if self.quantize_group_size is not None and self.quantize is None:
            raise ValueError(
                f"quantize_group_size = {self.quantize_group_size} means nothing without quantize; remove it"
            )
        if self.lora is not None and self.lora.load_in_4bit and self.lora.merge:
            raise ValueError(
                "lora.load_in_4bit = true holds weights in 4 bits, and lora.merge = true would round the "
                "student that is saved to them; set merge = false, and merge into the full weights later"
            )
        if self.small is not None and self.lora is not None:
            raise ValueError(
                "student.lora saves adapters alone, so a small student, which begins at random, could not be "
                "loaded again; remove student.lora, or start from student.model"
            )
        return self


def check_names(student: StudentConfig) -> None:
    """Raises ConfigError for a model or tokenizer that is neither here nor to be had, or a folder that is not
    whole. Loads no torch."""
    if student.model is not None:
        check_model_name(student.model, revision=student.revision, setting="student.model")
        check_loadable(student.model, "student.model")
    if student.tokenizer is not None:
        check_model_name(student.tokenizer, revision=None, setting="student.tokenizer")
