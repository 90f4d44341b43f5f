"""The dataset card: README.md with the front matter that the Hub reads, and what people must know."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from logitstore import __version__
from logitstore.manifest.fields import Manifest, ShardEntry

_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""How the Hub writes licences that it knows; others are called `other` and named beside."""
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")


@dataclass(frozen=True, slots=True)
class CardSettings:
    """What the store cannot say of itself."""

    repository: str = "OWNER/NAME"
    """Of the Hub, in the example."""
    licence: str = ""
    """Of the labels; "" for what the teacher's page says."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Counts of what is published."""

    num_sequences: int
    num_rows: int
    num_tokens: int
    num_bytes: int
    num_shards: int
    num_rejects: int
    """Records of the source that got no labels."""

    @classmethod
    def of(cls, entries: Sequence[ShardEntry], num_rejects: int) -> Contents:
        return cls(
            num_sequences=sum(entry.num_sequences for entry in entries),
            num_rows=sum(entry.num_rows for entry in entries),
            num_tokens=sum(entry.num_tokens for entry in entries),
            num_bytes=sum(entry.num_bytes for entry in entries),
            num_shards=len(entries),
            num_rejects=num_rejects,
        )


def dataset_card(manifest: Manifest, contents: Contents, settings: CardSettings) -> str:
    """Markdown with front matter."""
    return "\n".join(
        [
            *_front_matter(manifest, contents, settings),
            "",
            f"# Labels of {manifest.teacher.model}",
            "",
            f"The {manifest.labels.top_k} likeliest tokens at every position, with their logits and the "
            "exact mass of all others: what a student needs to be distilled without its teacher. A logit "
            f"store of [Penumbra](https://pypi.org/project/penumbra-distill/) {__version__}; its format is "
            "open, and one file of Python reads it.",
            "",
            *_facts(manifest, contents),
            "",
            "## Loading",
            "",
            "`pip install penumbra-distill huggingface_hub`, then",
            "",
            "```python",
            *_example(settings.repository),
            "```",
            "",
            "To train on it, name the address under `[data]` of a training run: "
            f'`stores = ["hf://datasets/{settings.repository}"]`.',
            "",
            "## Licence",
            "",
            _licence_note(manifest, settings.licence),
            "",
        ]
    )


def _front_matter(manifest: Manifest, contents: Contents, settings: CardSettings) -> list[str]:
    licence = settings.licence
    if not licence:
        lines = ["license: unknown"]
    elif _LICENCE_ID.fullmatch(licence):
        lines = [f"license: {licence}"]
    else:
        lines = ["license: other", f"license_name: {json.dumps(licence[:80])}"]
    digits = len(str(max(contents.num_sequences, 1)))
    return [
        "---",
        f"pretty_name: {json.dumps(f'Labels of {manifest.teacher.model}')}",
        *lines,
        "task_categories:",
        "- text-generation",
        "tags:",
        "- distillation",
        "- logits",
        "size_categories:",
        f"- {_SIZES[min(max(digits - 3, 0), len(_SIZES) - 1)]}",
        "viewer: false",
        "---",
    ]


def _facts(manifest: Manifest, contents: Contents) -> list[str]:
    teacher, tokenizer, labels = manifest.teacher, manifest.tokenizer, manifest.labels
    precision = teacher.dtype + (f", {teacher.quantization}" if teacher.quantization else "")
    facts = {
        "Teacher": f"{teacher.model}, revision {teacher.revision or 'not known'}",
        "Teacher's fingerprint": f"`{teacher.fingerprint or 'not known'}`",
        "Precision": precision,
        "Labeled by": f"{teacher.engine} {teacher.engine_version}, capture {teacher.capture}",
        "Tokenizer": f"`{tokenizer.fingerprint or 'not known'}`, {tokenizer.vocab_size:,} ids",
        "Width of the logits": f"{labels.vocab_size:,}",
        "K": f"{labels.top_k} entries a position",
        "Temperatures with exact mass": ", ".join(f"{temperature:g}" for temperature in labels.temperatures),
        "Values": labels.value_kind,
        "Labeled": f"{labels.positions} positions, mode {labels.mode}",
        "Sequences": f"{contents.num_sequences:,}",
        "Label rows": f"{contents.num_rows:,}",
        "Tokens": f"{contents.num_tokens:,}",
        "Bytes": f"{contents.num_bytes:,} in {contents.num_shards:,} shards, "
        f"{contents.num_bytes / max(1, contents.num_rows):.1f} a label row",
        "Records without labels": f"{contents.num_rejects:,}, left out here",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts.items())]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _example(repository: str) -> list[str]:
    return [
        "from logitstore import LogitStore",
        "",
        f'store = LogitStore.open("hf://datasets/{repository}")',
        "print(len(store), store.manifest.labels.top_k)",
        "sequence = store[0]",
        "print(sequence.record_id, sequence.token_ids_T.shape, sequence.rows.logits_NK.shape)",
    ]


def _licence_note(manifest: Manifest, licence: str) -> str:
    says = f"`{_cell(licence)}`" if licence else "not known to the store"
    return (
        f"The licence of the teacher, {manifest.teacher.model}, or of these labels: {says}. Labels are "
        "outputs of a model, over texts of an input: the terms of both apply, and some forbid to train other "
        "models on outputs."
    )
