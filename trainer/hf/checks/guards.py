"""Checks before a run: what would otherwise train on nonsense without a sign of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from logitstore.errors import TemperatureError
from logitstore.manifest.fields import SEGMENTS, LabelSpec, Manifest
from logitstore.manifest.tokenizer_identity import tokenizer_fingerprint
from logitstore.rows import temperature as temperatures
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import GuardError, TrainingWarning
from trainer.hf.checks.alignment import ALIGNMENT_SEQUENCES, Alignment, check_alignment
from trainer.loss.loss_settings import LossSettings


def check_student(
    dataset: StreamingLogitDataset,
    loss: LossSettings,
    collate: CollateSettings,
    *,
    student_width: int,
    vocabulary: Mapping[str, int] | None,
    store_losses: Sequence[LossSettings] = (),
) -> list[Alignment]:
    """Everything below, for each store of the dataset; returns the alignment of each.

    `student_width` is the number of the student's logits. `vocabulary` is that of its tokenizer; None
    leaves it unchecked. Widths may differ if `loss` says how: by `vocab_size` or foreign_ids="tail".
    `store_losses` are the losses of the stores where they differ; none: `loss` for all.
    """
    if loss.divergence == "sampled" and loss.alpha > 0:
        raise GuardError(
            "divergence='sampled' is for entries drawn from the teacher, but stores hold its top ones: all "
            "other ids would be unlearned. Use divergence='generalized_jsd'"
        )
    check_collation(loss, collate)
    for source in dataset.sources:
        check_segments(source.manifest, collate, where=source.uri)
    if loss.vocab_size is not None and loss.vocab_size > student_width:
        raise GuardError(
            f"vocab_size={loss.vocab_size} ids shall take part in the loss, but the student has "
            f"{student_width} logits; use a student with the teacher's tokenizer, or enlarge its embedding"
        )
    check_stores(dataset, loss, student_width=student_width, vocabulary=vocabulary)
    losses = store_losses or [loss] * len(dataset.sources)
    for source, own in zip(dataset.sources, losses, strict=True):
        if own.alpha > 0:
            labels = source.manifest.labels
            check_temperature(
                labels, own.temperature, own.tail, where=source.uri, is_renormalized=collate.renormalize
            )
    alignments, first = [], 0
    for source in dataset.sources:
        length = sum(source.lengths)
        samples = (dataset[index] for index in range(first, first + min(length, ALIGNMENT_SEQUENCES)))
        alignments.append(check_alignment(samples, where=source.uri))
        first += length
    return alignments


def check_stores(
    dataset: StreamingLogitDataset,
    loss: LossSettings,
    *,
    student_width: int,
    vocabulary: Mapping[str, int] | None,
) -> None:
    """Raises GuardError where the ids of a store are not the student's; of training and evaluation alike."""
    for source in dataset.sources:
        if vocabulary is not None:
            check_tokenizer(source.manifest, vocabulary, where=source.uri)
        if loss.vocab_size is None and loss.foreign_ids == "error":
            real_vocab_size(source.manifest, student_width, "same", where=source.uri)


def checked_store_losses(
    store_losses: Sequence[LossSettings], loss: LossSettings, dataset: StreamingLogitDataset
) -> tuple[LossSettings, ...]:
    """The losses by store, or none where all are `loss`. They may differ in alpha and temperature alone."""
    losses = tuple(store_losses)
    if losses and len(losses) != len(dataset.sources):
        raise ValueError(
            f"{len(losses)} store_losses were given for the {len(dataset.sources)} stores of the dataset; "
            "give one for each, in their order"
        )
    for source, own in zip(dataset.sources, losses, strict=False):
        if replace(own, alpha=loss.alpha, temperature=loss.temperature) != loss:
            raise ValueError(
                f"the loss of {source.uri} differs from that of the arguments in more than alpha and "
                "temperature; give dataclasses.replace(args.loss_settings(), alpha=..., temperature=...)"
            )
        if own.alpha > 0 and loss.alpha == 0:
            raise ValueError(
                f"the loss of {source.uri} has alpha={own.alpha}, the arguments have alpha=0 and read no "
                "teacher's labels; give the arguments the alpha of most stores, and 0 to the others"
            )
    return losses if set(losses) - {loss} else ()


def check_one_tokenizer(datasets: Iterable[StreamingLogitDataset]) -> None:
    """Raises GuardError for stores of several tokenizers, of which no student can have more than one."""
    found: dict[str, str] = {}
    for source in (source for dataset in datasets for source in dataset.sources):
        if source.manifest.tokenizer.fingerprint:
            found.setdefault(source.manifest.tokenizer.fingerprint, source.uri)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise GuardError(
            f"{first} and {second} were labeled with different tokenizers, so that the same id is another "
            "token; train on the stores of one, or map the others to it: penumbra store retokenize"
        )


def check_segments(manifest: Manifest, collate: CollateSettings, *, where: str) -> None:
    """Raises GuardError for weights of segments that the store does not know."""
    if collate.segment_weights and SEGMENTS not in manifest.features:
        raise GuardError(
            f"segments have weights, but {where} does not know what its tokens are (it has no feature "
            f"{SEGMENTS!r}); leave the weights out (data.segments in a configuration), or label it again"
        )


def check_collation(loss: LossSettings, collate: CollateSettings) -> None:
    """Batches must be what the loss takes them for."""
    for name, wanted in (
        ("ignore_index", loss.ignore_index),
        ("alignment", "label"),
        *([("temperature", loss.temperature), ("with_teacher", True)] if loss.alpha > 0 else []),
    ):
        found = getattr(collate, name)
        if found != wanted:
            raise GuardError(
                f"the collator's {name} is {found!r}, the loss takes its batches to have {wanted!r}: give "
                f"CollateSettings {name}={wanted!r}"
            )
    if loss.alpha > 0 and collate.renormalize and loss.tail in ("bucket", "uniform"):
        raise GuardError(
            f"the collator renormalises over the stored entries, tail={loss.tail!r} needs the mass outside "
            "them: give CollateSettings renormalize=False, or set tail='renormalize'"
        )


def check_tokenizer(manifest: Manifest, vocabulary: Mapping[str, int], *, where: str) -> None:
    """The student's tokenizer must give the store's ids the teacher's meaning. `where` names the store."""
    stored = manifest.tokenizer.fingerprint
    if not stored:
        warnings.warn(
            f"{where} does not say which tokenizer made its ids (it was imported), so nothing tells whether "
            "the student's is the same; look at it with `penumbra store inspect`",
            TrainingWarning,
            stacklevel=1,  # one place for every caller, so that it is said once
        )
        return
    found = tokenizer_fingerprint(vocabulary)
    if found != stored:
        raise GuardError(
            f"the student's tokenizer has {len(vocabulary)} ids and the fingerprint {found[:23]}..., "
            f"{where} was labeled with one of {manifest.tokenizer.vocab_size} ids and {stored[:23]}...: "
            f"the same id is another token. {_tokenizer_remedy(manifest)}"
        )


def _tokenizer_remedy(manifest: Manifest) -> str:
    if manifest.retokenized is not None:
        return "Use the tokenizer that the store was mapped to, or map its source to yours"
    return (
        f"Use the tokenizer of the teacher, {manifest.teacher.model}, or map the store to the student's: "
        "penumbra store retokenize"
    )


def real_vocab_size(
    manifest: Manifest, student_width: int, policy: Literal["same", "padded"], *, where: str
) -> int | None:
    """Ids that take part in the loss; None for all of the student's.

    Raises GuardError unless student and teacher have logits of the same width, or the policy is "padded"
    and both are as wide as the tokenizer has ids.
    """
    teacher_width = manifest.labels.vocab_size
    if policy == "same":
        if student_width != teacher_width:
            raise GuardError(
                f"the student has {student_width} logits, the teacher of {where} {teacher_width}; if they "
                "differ by padding only, set loss.vocabulary='padded' (in code: vocab_size, the ids of the "
                "tokenizer, and foreign_ids='tail'); otherwise use a student with the teacher's tokenizer"
            )
        return None
    real = manifest.tokenizer.vocab_size or min(student_width, teacher_width)
    if real > min(student_width, teacher_width):
        raise GuardError(
            f"the tokenizer of {where} has {real} ids, but the student has {student_width} logits and the "
            f"teacher {teacher_width}: more than padding is missing; use one with the teacher's tokenizer"
        )
    return real


def check_temperature(
    labels: LabelSpec, temperature: float, tail: str, *, where: str, is_renormalized: bool = True
) -> None:
    """The tail's mass at `temperature` must be stored or follow from what is, unless there is no tail.

    `is_renormalized` says whether the collator leaves the tail out as well.

    Raises:
        TemperatureError: it does not.
    """
    without_tail = tail in ("renormalize", "zero")
    if without_tail and is_renormalized:
        return
    try:
        temperatures.check_readable(labels, temperature)
    except TemperatureError as error:
        if labels.support == "none":
            raise TemperatureError(
                f"{where} holds texts alone, of which nothing is known at temperature {temperature:g}; learn "
                "them with alpha=0 (in code store_losses, one for each store)"
            ) from None
        remedy = (
            f"tail={tail!r} needs no normaliser: give CollateSettings renormalize=True"
            if without_tail
            else "to do without the tail, set tail='renormalize' (in a configuration "
            "loss.tail='renormalize') and CollateSettings renormalize=True"
        )
        raise TemperatureError(f"{where}: {error}; {remedy}") from None
