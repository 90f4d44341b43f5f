"""Tiny models that read and write bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tests.logitstore.exchange.test_texts import CHATML, byte_tokenizer
from tests.trainer.students import tiny_student

VOCAB_SIZE = 258
WITH_START = "{{ bos_token }}" + CHATML


def byte_model(
    folder: Path,
    *,
    seed: int = 0,
    template: str | None = None,
    positions: int = 2048,
    generation: dict[str, Any] | None = None,
) -> str:
    """A folder with a random model, whose tokenizer begins every text with <|s|>."""
    bytes_of = byte_tokenizer()
    bytes_of.post_processor = processors.TemplateProcessing(
        single="<|s|> $A", special_tokens=[("<|s|>", bytes_of.token_to_id("<|s|>"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_of, bos_token="<|s|>", eos_token="<|e|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = tiny_student(VOCAB_SIZE, seed=seed)
    model.config.max_position_embeddings = positions
    if generation is not None:
        model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder)
    return str(folder)
