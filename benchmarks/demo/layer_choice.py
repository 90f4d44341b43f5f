"""Which layers of its teacher the demo's student keeps: those that change what runs through them most.

The influence of a layer is the mean over tokens of 1 - cos(what goes in, what comes out), over some of the
demo's answers and their prompts. Men et al. 2024, "ShortGPT: Layers in Large Language Models are More
Redundant Than You Expect", section 3.

Shape legend: B texts, here one at a time, T tokens, H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = Path(__file__).parents[1] / "demo_data" / "pairs.jsonl"
NUM_TEXTS = 8


def most_influential(model: Any, tokenizer: Any, num_layers: int) -> tuple[int, ...]:
    """So many layers of a Llama model, in their order, by `influences` on the demo's texts."""
    found = influences(model, demo_texts(tokenizer))
    if not 0 < num_layers <= len(found):
        raise ValueError(f"{num_layers} layers cannot be kept of a teacher with {len(found)}")
    return tuple(sorted(sorted(range(len(found)), key=lambda layer: -found[layer])[:num_layers]))


def demo_texts(tokenizer: Any) -> list[list[int]]:
    """Tokens of some of the demo's prompts with their answers, evenly spaced in their file."""
    records = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    return [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": record["prompt"]},
                {"role": "assistant", "content": record["response"]},
            ],
            return_dict=False,
        )
        for record in records[:: len(records) // NUM_TEXTS][:NUM_TEXTS]
    ]


def influences(model: Any, texts: Sequence[Sequence[int]]) -> list[float]:
    """The influence of each layer, over all tokens of all texts alike."""
    import torch

    sums = [0.0] * len(model.model.layers)

    def counting(place: int) -> Any:
        def count(_: Any, arguments: tuple[Tensor, ...], after: Tensor | tuple[Tensor, ...]) -> None:
            after_BTH = after if isinstance(after, torch.Tensor) else after[0]
            sums[place] += float((1 - torch.cosine_similarity(arguments[0], after_BTH, dim=-1)).sum())

        return count

    hooks = [layer.register_forward_hook(counting(place)) for place, layer in enumerate(model.model.layers)]
    try:
        with torch.no_grad():
            for token_ids in texts:
                model.model(input_ids=torch.tensor([list(token_ids)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    num_tokens = sum(map(len, texts))
    return [one / num_tokens for one in sums]
