"""The dataset card: README.md with the front matter that the Hub reads, and what people must know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from logitstore import __version__
from logitstore.index.commits import SHARDS_PREFIX
from logitstore.manifest.fields import STUDENT_PROMPTS, LabelSpec, Manifest, ShardEntry

_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""How the Hub writes licences that it knows; others are called `other` and named beside."""
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")


_DATA_FILES = ("configs:", "- config_name: default", f"  data_files: {SHARDS_PREFIX}*.arrow")


@dataclass(frozen=True, slots=True)
class CardSettings:
    """What the store cannot say of itself."""

    repository: str = "OWNER/NAME"
    """The Hub's repository in the card's example."""
    licence: str = ""
    """The licence of the labels; "" refers to the teacher's page."""


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
            f"# {_title(manifest)}",
            "",
            f"{_what_it_holds(manifest)} A logit store of "
            f"[Penumbra](https://pypi.org/project/penumbra-distill/) {__version__}; its format is open, and "
            "one file of Python reads it.",
            "",
            *_facts(manifest, contents),
            "",
            "## Loading",
            "",
            "`pip install penumbra-distill huggingface_hub`, then",
            "",
            "```python",
            *_example(manifest.labels, settings.repository),
            "```",
            "",
            "To train on it, name the address under `[data]` of a training run: "
            f'`stores = ["hf://datasets/{settings.repository}"]`{_how_to_train(manifest.labels)}.',
            "",
            "`datasets.load_dataset` has a row for each block of sequences: ids, lengths and flags are in "
            "the clear, while labels are packed, and need the above.",
            "",
            "## Licence",
            "",
            _licence_note(manifest, settings.licence),
            "",
        ]
    )


def _title(manifest: Manifest) -> str:
    kind = "Texts" if manifest.labels.support == "none" else "Labels"
    return f"{kind} of {_teacher(manifest)}"


def _teacher(manifest: Manifest) -> str:
    """Its name, in one line."""
    return " ".join(manifest.teacher.model.split())


def _quoted(text: str) -> str:
    """A text of YAML. (JSON writes an emoji as two halves of a character, which YAML takes for two.)"""
    plain = (one if one.isprintable() and one not in '"\\' else f"\\U{ord(one):08x}" for one in text)
    return f'"{"".join(plain)}"'


def _what_it_holds(manifest: Manifest) -> str:
    labels = manifest.labels
    prompts = (
        " A student sees another prompt than the teacher did: `sequence.for_student()` is what it reads."
        if STUDENT_PROMPTS in manifest.features
        else ""
    )
    if labels.support == "none":
        return (
            "What a teacher wrote, as the ids of its tokens, and nothing of its distribution: a student can "
            f"be trained on the texts.{prompts}"
        )
    others = (
        "the mass of all others" if "import" in manifest.teacher.capture else "the exact mass of all others"
    )
    if labels.support == "given":
        entries = f"Up to {labels.top_k} tokens that were named beforehand, not the teacher's likeliest,"
    else:
        entries = f"The {labels.top_k} likeliest tokens"
    ids = (
        " The rows were mapped to the ids of another tokenizer than the teacher's; what has no counterpart "
        "there is part of that mass, and rows that have none are masked."
        if manifest.retokenized is not None
        else ""
    )
    return (
        f"{entries} at every labeled position, with their logits and {others}: what a student needs to be "
        f"distilled without its teacher.{ids}{prompts}"
    )


def _how_to_train(labels: LabelSpec) -> str:
    return (
        ", with `loss.alpha = 0` since there is no distribution to learn" if labels.support == "none" else ""
    )


def _front_matter(manifest: Manifest, contents: Contents, settings: CardSettings) -> list[str]:
    licence = settings.licence
    if not licence:
        lines = ["license: unknown"]
    elif _LICENCE_ID.fullmatch(licence):
        lines = [f"license: {licence}"]
    else:
        lines = ["license: other", f"license_name: {_quoted(licence[:80])}"]
    digits = len(str(max(contents.num_sequences, 1)))
    return [
        "---",
        f"pretty_name: {_quoted(_title(manifest))}",
        *lines,
        "task_categories:",
        "- text-generation",
        "tags:",
        "- distillation",
        *(["- logits"] if manifest.labels.support != "none" else []),
        "size_categories:",
        f"- {_SIZES[min(max(digits - 3, 0), len(_SIZES) - 1)]}",
        "viewer: false",
        # Without this `datasets` takes the index, whose columns are others, for data too.
        *(_DATA_FILES if contents.num_shards else ()),
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
        **_facts_of_rows(manifest),
        "Sequences": f"{contents.num_sequences:,}",
        **({} if labels.support == "none" else {"Label rows": f"{contents.num_rows:,}"}),
        "Tokens": f"{contents.num_tokens:,}",
        "Bytes": f"{contents.num_bytes:,} in {contents.num_shards:,} shards, {_bytes_each(contents)}",
        "Records without labels": f"{contents.num_rejects:,}, left out here",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts.items())]


def _facts_of_rows(manifest: Manifest) -> dict[str, str]:
    labels = manifest.labels
    if labels.support == "none":
        return {"Written": f"mode {labels.mode}"}
    mass = "mass" if "import" in manifest.teacher.capture else "exact mass"
    entries = "given entries" if labels.support == "given" else "entries"
    return {
        "Width of the logits": f"{labels.num_outcomes:,}",
        "K": f"{labels.top_k} {entries} a position",
        f"Temperatures with {mass}": ", ".join(f"{temperature:g}" for temperature in labels.temperatures),
        "Values": labels.value_kind,
        "Labeled": f"{labels.positions} positions, mode {labels.mode}",
    }


def _bytes_each(contents: Contents) -> str:
    if contents.num_rows:
        return f"{contents.num_bytes / contents.num_rows:.1f} a label row"
    return f"{contents.num_bytes / max(1, contents.num_tokens):.1f} a token"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _example(labels: LabelSpec, repository: str) -> list[str]:
    of_rows = "" if labels.support == "none" else ", sequence.rows.logits_NK.shape"
    return [
        "from logitstore import LogitStore",
        "",
        f'store = LogitStore.open("hf://datasets/{repository}")',
        "print(len(store), store.manifest.teacher.model)",
        "sequence = store[0]",
        f"print(sequence.record_id, sequence.token_ids_T.shape{of_rows})",
    ]


def _licence_note(manifest: Manifest, licence: str) -> str:
    says = f"`{_cell(licence)}`" if licence else "not known to the store"
    return (
        f"The licence of the teacher, {_teacher(manifest)}, or of these labels: {says}. Labels are "
        "outputs of a model, over texts of an input: the terms of both apply, and some forbid to train other "
        "models on outputs."
    )
