"""The model that learns: loaded, or fresh in a given size, with the teacher's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig

from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import first_line
from logitstore.models.folder import refuse_no_tokens
from logitstore.objects.opening import Objects
from logitstore.tokenizer_objects import unpacked_tokenizer
from trainer.hf.checks.adapters import check_mergeable
from trainer.hf.loading import not_loaded, refuse_fresh_weights
from trainer.hf.quantize import WeightQuantization
from trainer.hf.student import with_adapters
from trainer.run.settings.data import StoreSource
from trainer.run.settings.student import LoraSettings, SmallStudentConfig, StudentConfig, check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INT4_GROUP_SIZE = 32
VOCABULARY_MULTIPLE = 64
"""A fresh student's head is padded to a multiple of this when the store does not say how wide it is."""


def load_tokenizer(config: StudentConfig, stores: Sequence[StoreSource]) -> PreTrainedTokenizerBase:
    """The tokenizer named by the configuration, else the teacher's that a store keeps, else the model's own.

    Uses no network for a folder or a store's. Raises ConfigError where there is none.
    """
    name = config.tokenizer or _tokenizer_of(stores) or config.model
    if name is None:
        raise ConfigError(
            "a small student has no tokenizer, and the store keeps none; set student.tokenizer to the "
            "teacher's model"
        )
    check_names(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # of any kind, for whatever stands in its files
        raise ConfigError(
            f"student.tokenizer = {name!r}: no tokenizer there ({first_line(error)}); "
            "give the teacher's Hugging Face id or a folder that holds tokenizer.json"
        ) from error
    refuse_no_tokens(tokenizer, name, "student.tokenizer")
    return tokenizer


def _tokenizer_of(stores: Sequence[StoreSource]) -> str | None:
    """A folder with the tokenizer of the first store that keeps one; all of a run's have the same ids."""
    for store in stores:
        folder = unpacked_tokenizer(Objects(store.uri, store.storage_options))
        if folder is not None:
            return str(folder)
    return None


def quantization_of(config: StudentConfig) -> WeightQuantization | None:
    if config.quantize is None:
        return None
    if config.quantize == "int8":
        return WeightQuantization(8, config.quantize_group_size)
    return WeightQuantization(4, config.quantize_group_size or INT4_GROUP_SIZE)


def load_student(
    config: StudentConfig, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int | None, seed: int
) -> PreTrainedModel:
    """The student, on the CPU, in training mode; with adapters if the configuration has them.

    `vocab_size` is the width of a fresh student's head: the store's, so that ids match the teacher's.
    """
    dtype = getattr(torch, config.dtype)
    try:
        if config.small is not None:
            width = vocab_size or -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
            model: Any = _fresh(config.small, tokenizer, width, seed, config.attn_implementation).to(dtype)
        elif config.model is not None:
            model = _load(config.model, config, dtype)
        else:
            raise ConfigError("student.model or student.small must say which student learns")
    except (ImportError, ValueError) as error:
        if config.attn_implementation is None or isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"student.attn_implementation = {config.attn_implementation!r}: {first_line(error)} Choose "
            "'sdpa' or 'eager', or install what it needs"
        ) from error
    if config.lora is not None:
        model = _with_adapters(model, config.lora, seed)
    return model


def _fresh(
    size: SmallStudentConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    seed: int,
    attn_implementation: str | None,
) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads or size.num_heads,
        max_position_embeddings=size.max_positions,
        tie_word_embeddings=size.tie_embeddings,
        bos_token_id=_single(tokenizer.bos_token_id),
        eos_token_id=_single(tokenizer.eos_token_id),
        pad_token_id=_single(tokenizer.pad_token_id),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)


def _single(token_id: Any) -> int | None:
    return token_id[0] if isinstance(token_id, list) else token_id


def _load(name: str, config: StudentConfig, dtype: torch.dtype) -> PreTrainedModel:
    # Not given as None: transformers then forgets what the folder says of its own integers.
    in_4_bits = {"quantization_config": _in_4_bits(dtype)} if config.lora and config.lora.load_in_4bit else {}
    what = f"student.model = {name!r}"
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=config.revision or "main",
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=config.attn_implementation,
            output_loading_info=True,
            **in_4_bits,
        )
    except Exception as error:
        if config.attn_implementation is not None and "ttention" in str(error):
            raise  # the model is there
        raise not_loaded(
            error,
            what,
            "give a Hugging Face id or a folder that holds config.json and weights, or student.small for a "
            "fresh one",
        ) from error
    model, loading = loaded
    refuse_fresh_weights(loading, what)
    return model


def _in_4_bits(dtype: torch.dtype) -> Any:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _with_adapters(model: PreTrainedModel, lora: LoraSettings, seed: int) -> PreTrainedModel:
    from peft import LoraConfig

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float is what the scaling uses
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=list(lora.modules_to_save) or None,
        trainable_token_indices=list(lora.trainable_tokens) or None,
        task_type="CAUSAL_LM",
    )
    adapted = with_adapters(model, adapters, seed=seed)
    if lora.merge:
        check_mergeable(adapted)
    return adapted
