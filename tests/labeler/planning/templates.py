"""Chat templates of the shapes that real models have, and a small tokenizer to try them with."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerFast

MARKERS = (
    *("<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]", "<bos>", "<start_of_turn>"),
    *("<end_of_turn>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>", "<|system|>", "<|user|>"),
    *("<|assistant|>", "<|end|>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
)
PLAIN_MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Added, but not special: as Qwen has them."""

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ m['content'] | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}"
    "\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.index0 > ns.last %}"
    "<think>\n{{ (m['reasoning_content'] or '') | trim }}\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}"
    "{% else %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}<|end_of_sentence|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
_TOOLS = (
    "{% if tools %}<|im_start|>system\nTOOLS{% for t in tools %} {{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] %}{{ m['content'] }}{% endif %}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DATED = (
    "<|system|>Today is {{ date_string if date_string is defined else strftime_now('%d %b %Y') }}<|end|>\n"
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_HARMONY = (
    "{% for m in messages %}{% if m['role'] != 'assistant' %}<|start|>"
    "{{ m['name'] ~ ' to=assistant' if m['role'] == 'tool' else m['role'] }}<|message|>{{ m['content'] }}<|end|>"
    "{% elif m['tool_calls'] %}{% if m['thinking'] %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m['thinking'] }}<|end|>{% endif %}"
    "{% for c in m['tool_calls'] %}<|start|>assistant to=functions.{{ c['function']['name'] }}"
    "<|channel|>commentary json<|message|>{{ c['function']['arguments'] | tojson }}<|call|>{% endfor %}"
    "{% else %}{% if m['thinking'] and loop.last %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m['thinking'] }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)

TEMPLATES: dict[str, str] = {
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "gemma": _GEMMA,
    "qwen3": _QWEN3,
    "r1": _R1,
    "tools": _TOOLS,
    "dated": _DATED,
    "harmony": _HARMONY,
    "phi3": _PHI3,
}
UNSTABLE = ("harmony", "qwen3", "r1")
"""Shapes that render an earlier turn of the assistant's otherwise than a last one."""
BOS = {"llama3": "<|begin_of_text|>", "mistral": "<s>", "gemma": "<bos>", "r1": "<s>"}
END_OF_TURN = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
    "qwen3": "<|im_end|>",
    "r1": "<|end_of_sentence|>",
    "tools": "<|im_end|>",
    "dated": "<|end|>",
    "harmony": "<|return|>",
    "phi3": "<|end|>",
}


def byte_tokenizer(*, family: str = "byte_bpe", bos: str | None = None, adds_eos: bool = False) -> Any:
    """A new small tokenizer of a family: "byte_bpe", "metaspace" or "metaspace_no_prefix".

    It names `<|endoftext|>` as its end of text and, with `bos`, puts that before a text of itself.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=family != "byte_bpe"))
    if family == "byte_bpe":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        scheme = "first" if family == "metaspace" else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
        alphabet = ["\u2581", "\n", *(chr(i) for i in range(33, 127))]
    texts = [
        "the houses are big and the hours are long",
        "Capital of France? Answer: Paris",
        "It is 4. It is 5.",
    ]
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN_MARKERS])
    before = [bos] if bos else []
    after = ["<|endoftext|>"] if adds_eos else []
    if before or after:
        named = [(text, tokenizer.token_to_id(text)) for text in dict.fromkeys([*before, *after])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*before, "$A", *after]), special_tokens=named
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token=bos)


def marked(template: str) -> str:
    """The template with {% generation %} around what the assistant writes, its end of turn included."""
    if "{% generation %}" in template:
        return template
    for answer in (
        "{{ m['content'] }}{{ '<|return|>' if loop.last else '<|end|>' }}",
        "{{ m['content'].split('</think>')[-1] }}<|end_of_sentence|>",
        " {{ m['content'] }}</s>",
        "{{ m['content'] | trim }}<end_of_turn>",
        "{{ m['content'] }}<|end|>",
        "{{ m['content'] }}<|im_end|>",
        "{% if m['content'] %}{{ m['content'] }}{% endif %}",
    ):
        if answer in template:
            both = (
                "{% if m['role'] == 'assistant' %}{% generation %}" + answer + "{% endgeneration %}"
                "{% else %}" + answer + "{% endif %}"
            )
            return template.replace(answer, both)
    raise AssertionError(template)


@cache
def tokenizer_of(shape: str) -> Any:
    """A tokenizer with the chat template of that shape, whose named end of text is another token than the
    template's end of turn."""
    tokenizer = byte_tokenizer(bos=BOS.get(shape))
    tokenizer.chat_template = TEMPLATES[shape]
    return tokenizer
