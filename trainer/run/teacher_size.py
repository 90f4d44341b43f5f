"""How large the teacher of a store is, by the configuration that the store keeps beside its tokenizer."""

from __future__ import annotations

import logging

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from logitstore.tokenizer_objects import unpacked_tokenizer
from trainer.data.sources import Source

logger = logging.getLogger(__name__)


def teacher_parameters(source: Source) -> int | None:
    """Parameters of the teacher's architecture; no weights are read or made.

    None where the store keeps no configuration, keeps another model's (ids of another tokenizer), or one of
    an architecture that is not transformers' own.
    """
    if source.manifest.labels.teacher_vocab_size is not None:
        return None
    folder = unpacked_tokenizer(source.objects)
    if folder is None or not (folder / "config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    # Of any kind: an unknown architecture, a configuration of an older version, whatever stands in the file.
    except Exception as error:  # noqa: BLE001
        logger.debug("no size of the teacher of %s: %s", source.uri, error)
        return None
    return model.num_parameters()
