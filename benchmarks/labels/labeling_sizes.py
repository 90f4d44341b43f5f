"""What the measurement of labeling labels: sequences of a length and number that fit the device."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labeler.config.loading import OutputConfig
from labeler.records import TokenizedPrompt
from logitstore.models.hub import check_model_name

PROMPTS_FILE = Path(__file__).parents[1] / "demo_data" / "pairs.jsonl"
WHOLE_PATH_TOP_K = 64
"""Entries of the job that is measured from plan to disk."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a variant labels at a time: enough that its engine is full, and that it runs for seconds."""

    prompts: int
    prompt_tokens: int
    unit_prompts: int
    """Sequences of a unit of the whole job."""


DEFAULT_UNIT_PROMPTS = OutputConfig.model_fields["unit_size"].default
ON_CPU = Sizes(prompts=6, prompt_tokens=256, unit_prompts=2)
ON_GPU = Sizes(prompts=256, prompt_tokens=512, unit_prompts=DEFAULT_UNIT_PROMPTS)
QUICK_PROMPTS = {ON_CPU: 2, ON_GPU: 64}


def sizes_for(args: argparse.Namespace) -> Sizes:
    """Those that fit the device of the engine, or the number that was asked for."""
    sizes = ON_GPU if args.gpus else ON_CPU
    most = QUICK_PROMPTS[sizes] if args.quick else sizes.prompts
    prompts = most if args.prompts is None else min(args.prompts, most) if args.quick else args.prompts
    return replace(sizes, prompts=prompts, unit_prompts=min(sizes.unit_prompts, prompts))


def read_prompts(args: argparse.Namespace, sizes: Sizes) -> list[TokenizedPrompt]:
    """Equally long pieces of the input's text, to be scored as a whole; a short text is gone through again.

    A repeated text costs as much as a new one: the labeler's engines keep no prefix cache.
    """
    from transformers import AutoTokenizer

    check_model_name(args.teacher, revision=None, setting="--teacher")
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    path = Path(args.input) if args.input else PROMPTS_FILE
    text = path.read_text(encoding="utf-8")[: 12 * sizes.prompts * sizes.prompt_tokens]
    ids = np.asarray(tokenizer(text)["input_ids"], np.int32)
    if not len(ids):
        raise ValueError(f"{path} holds no text; give another file as --input")
    pieces = np.resize(ids, (sizes.prompts, sizes.prompt_tokens))
    empty = np.empty(0, np.int32)
    return [TokenizedPrompt(f"piece-{index}", empty, piece, 1) for index, piece in enumerate(pieces)]
