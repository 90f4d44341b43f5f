"""How likely a model finds a text as the answer to a question: bits per byte, whatever its tokenizer.

Bits per byte are those of lm-eval, over all items together: the sum of the texts' negative log-likelihoods by
the sum of their bytes in UTF-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from logitstore.exchange.chat_text import THINK, THINK_END
from trainer.errors import NotFiniteError
from trainer.parity.models.model import AnsweringModel
from trainer.parity.records import Item


def prompt_of(model: AnsweringModel, item: Item) -> str:
    """The item's messages as the model is asked them, by its chat template where it has one."""
    if model.tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in item.messages)
    return model.rendered(item.messages)


def bits_per_byte(model: AnsweringModel, told: Sequence[tuple[Item, str]]) -> list[float]:
    """For each (item, text), the bits of the text after the item's messages, by its bytes; no text is empty.

    Without a chat template a space stands between the two, as lm-eval has it. A template that begins to
    reason is taken to have ended that at once.
    """
    is_chat = model.tokenizer.chat_template is not None
    pairs = []
    for item, text in told:
        prompt = prompt_of(model, item)
        if prompt.rstrip().endswith(THINK):
            prompt = f"{prompt.rstrip()}\n\n{THINK_END}\n\n"
        pairs.append((prompt, text if is_chat else f" {text}"))
    found = []
    for (item, text), (logprob, _) in zip(told, model.loglikelihoods(pairs, is_chat=is_chat), strict=True):
        if not math.isfinite(logprob):
            raise NotFiniteError(
                f"{model.name!r} gives the answer of {item.item_id} no probability at all, so it has no bits "
                "per byte: a model that rules tokens out cannot be compared so; use another --match"
            )
        found.append(-logprob / math.log(2) / num_bytes(text))
    return found


def num_bytes(text: str) -> int:
    return len(text.encode())


def num_changed(model: AnsweringModel, texts: Sequence[str]) -> int:
    """How many of the texts the model's tokenizer drops or changes parts of, white space aside.

    What it does not see costs it no bits.
    """
    return sum(_letters(_read_back(model, text)) != _letters(text) for text in texts)


def _read_back(model: AnsweringModel, text: str) -> str:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _letters(text: str) -> str:
    return "".join(text.split())
