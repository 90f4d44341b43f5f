"""Whether a student keeps packed documents apart, tried on the student itself.

What a packed batch means depends on the student's attention code: a mask that one implementation obeys
is added to the scores by another, and a recurrent state knows no documents at all. A student that sees
its neighbours, or the tokens it must predict, learns to a low loss and is ruined. So two documents are
run packed and apart before any training, forward and backward.

Shape legend: B rows, T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence, LabelRows
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings, PackedAttention
from trainer.batch.packing import one_per_row, packed
from trainer.data.samples import Sample
from trainer.errors import GuardError, PackingError
from trainer.hf.checks.lengths import student_context
from trainer.hf.heads import MODEL_KEYS

_LENGTHS = (5, 8, 9, 4)
"""Tokens of the documents, which fill two rows, as some attention code takes documents in one only."""
_ROW_LENGTH = 16
LEAK_TOLERANCE = 1e-6
"""Gradient that may reach a token of another document, relative to the largest: none, but for rounding."""
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 6e-2
"""Difference to the documents apart, relative to the largest logit or gradient; rounding of other shapes."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Logits [T, V] and the gradient at the embeddings [T, H], of each document."""

    logits: list[Tensor]
    gradients: list[Tensor]


def choose_packed_attention(model: Any, *, pack_length: int) -> PackedAttention:
    """The first way of keeping documents apart that is right for this student.

    Raises PackingError if none is: for state-space students, and those with positions of their own.
    """
    faults: dict[str, str] = {}
    for way in _ways(model):
        fault = packing_fault(model, way, pack_length=pack_length)
        if fault is None:
            return way
        faults[way] = fault
    tried = "; ".join(f"{way}: {fault}" for way, fault in faults.items())
    raise PackingError(
        f"{type(model).__name__} does not keep packed documents apart ({tried}). Set pack_length to None "
        "(data.pack_length in a configuration), which pads each sequence to a row of its own"
    )


def check_packed_attention(model: Any, way: PackedAttention, *, pack_length: int) -> None:
    """Raises PackingError, naming what works instead, if this way is wrong for this student."""
    fault = packing_fault(model, way, pack_length=pack_length)
    if fault is None:
        return
    right = choose_packed_attention(model, pack_length=pack_length)
    raise PackingError(
        f"packed_attention={way!r} is wrong for {type(model).__name__} with "
        f"attn_implementation={_implementation(model)!r}: {fault}. Set packed_attention={right!r}, or leave "
        "it out, which chooses that"
    )


def settle_packing(model: Any, settings: CollateSettings) -> CollateSettings:
    """The settings with what keeps packed documents apart: chosen, or what was given, proved."""
    if settings.pack_length is None:
        return settings
    if settings.packed_attention is None:
        way = choose_packed_attention(model, pack_length=settings.pack_length)
        return replace(settings, packed_attention=way)
    check_packed_attention(model, settings.packed_attention, pack_length=settings.pack_length)
    return settings


def packing_fault(model: Any, way: PackedAttention, *, pack_length: int) -> str | None:
    """What is wrong with packing this student's batches in this way, in words; None if nothing is."""
    # Two limits on attention that documents as short as the trial's would not show.
    chunk = getattr(model.config.get_text_config(), "attention_chunk_size", None)
    if isinstance(chunk, int) and pack_length > chunk:
        return f"its attention is cut into chunks of {chunk} tokens of the row, wherever documents begin"
    window = _window(model)
    if way.startswith("block_diagonal") and window is not None and pack_length > window:
        return f"its attention reaches {window} tokens back, and a mask for all layers would undo that"
    was_training = model.training
    model.eval()
    try:
        apart, packed = _run(model, None), _run(model, way)
        leak = largest_leak(model, way)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        return f"it fails with {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    finally:
        model.train(was_training)
    if not leak < LEAK_TOLERANCE:
        return f"a document depends on tokens it must not see (gradient {leak:.1g} of the largest)"
    tolerance = _TOLERANCES.get(packed.logits[0].dtype, _HALF_TOLERANCE)
    for name in ("logits", "gradients"):
        error = _difference(getattr(packed, name), getattr(apart, name))
        if not error < tolerance:
            return f"{name} differ by {error:.1g} of their size from those of the documents apart"
    return None


def uses_flash_attention(model: Any) -> bool:
    """Whether its attention is FlashAttention of any version, which computes in half precision alone."""
    return "flash" in _implementation(model)


def _ways(model: Any) -> tuple[PackedAttention, ...]:
    if uses_flash_attention(model):  # takes no mask of four dimensions, and on a GPU may die of one
        return ("position_ids", "position_ids_one_row")
    return ("position_ids", "block_diagonal", "block_diagonal_additive")


def _implementation(model: Any) -> str:
    return str(getattr(model.config.get_text_config(), "_attn_implementation", None))


def _window(model: Any) -> int | None:
    """How far the attention of some layer reaches; None without such a limit."""
    config = model.config.get_text_config()
    if getattr(config, "use_sliding_window", True) is False:
        return None
    window = getattr(config, "sliding_window", None)
    return window if isinstance(window, int) else None


def _samples(model: Any) -> list[Sample]:
    """The same documents however they are laid out, within the student's context."""
    vocab_size = min(model.get_input_embeddings().weight.shape[0], 997)
    context = student_context(model) or max(_LENGTHS)
    return [
        _sample((np.arange(min(length, context)) * 7 + 11 * number + 3) % vocab_size)
        for number, length in enumerate(_LENGTHS)
    ]


def _sample(token_ids_T: np.ndarray) -> Sample:
    none_N = np.empty(0, dtype=np.float32)
    rows = LabelRows(
        logits_NK=np.empty((0, 1), dtype=np.float32),
        token_ids_NK=np.empty((0, 1), dtype=np.int32),
        count_N=none_N.astype(np.int32),
        logsumexp_NM=np.empty((0, 1), dtype=np.float32),
        log_tail_mass_NM=np.empty((0, 1), dtype=np.float32),
        label_logprob_N=none_N,
        label_rank_N=none_N.astype(np.int32),
    )
    spec = LabelSpec(2, 1, (1.0,), "logit_f16", "score", "response")
    sequence = LabeledSequence("", 0, token_ids_T.astype(np.int32), 1, 1, rows, none_N.astype(bool), "scored")
    return Sample(sequence, spec)


@dataclass(frozen=True, slots=True)
class _Forward:
    logits: list[Tensor]
    """[T, V] of each document."""
    starts: list[tuple[int, int]]
    """(row, first token) of each."""
    embeddings_BTH: Tensor


def _forward(model: Any, way: PackedAttention | None) -> _Forward:
    """`way` None is each document in a row of its own."""
    samples = _samples(model)
    lengths = [len(sample.sequence.token_ids_T) for sample in samples]
    if way is None:
        collator = DistillationCollator(CollateSettings(with_teacher=False))
        places, (_, width) = one_per_row(lengths, 1)
    else:
        collator = DistillationCollator(
            CollateSettings(with_teacher=False, pack_length=_ROW_LENGTH, packed_attention=way)
        )
        places, (_, width) = packed(lengths, _ROW_LENGTH, collator.settings.pad_to_multiple_of)
    batch = collator(samples)
    starts = [
        (0, place.row * width + place.start) if way == "position_ids_one_row" else (place.row, place.start)
        for place in places
    ]
    embeddings = model.get_input_embeddings()
    taken: list[Tensor] = []

    def take(_module: Any, _args: Any, output: Tensor) -> Tensor:
        taken.append(output.detach().requires_grad_())
        return taken[-1].clone()  # which a student may scale in its place

    hook = embeddings.register_forward_hook(take)
    device = embeddings.weight.device
    inputs = {key: batch[key].to(device) for key in MODEL_KEYS if key in batch}
    try:
        with torch.enable_grad():
            logits_BTV = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    num_given, num_logits = inputs["input_ids"].shape[1], logits_BTV.shape[1]
    if num_logits != num_given:
        raise GuardError(
            f"{type(model).__name__} has logits at {num_logits} places for {num_given} tokens: it adds some "
            "of its own (soft prompts of prompt tuning or p-tuning), so none stands at its label; train what "
            "adds none (LoRA, DoRA, IA3, prefix tuning)"
        )
    logits = [
        logits_BTV[row, start : start + length] for (row, start), length in zip(starts, lengths, strict=True)
    ]
    return _Forward(logits, starts, taken[0])


def _run(model: Any, way: PackedAttention | None) -> _Outcome:
    forward = _forward(model, way)
    (gradient_BTH,) = torch.autograd.grad(_weighted(forward.logits), forward.embeddings_BTH)
    gradients = [
        gradient_BTH[row, start : start + len(document)]
        for document, (row, start) in zip(forward.logits, forward.starts, strict=True)
    ]
    return _Outcome([document.detach() for document in forward.logits], gradients)


def largest_leak(model: Any, way: PackedAttention | None) -> float:
    """Largest gradient of one document's logits at another's tokens, or at tokens behind, by the largest.

    `way` None is each document in a row of its own.
    """
    forward = _forward(model, way)
    largest, leak = 0.0, 0.0
    for document_TV, (row, start) in zip(forward.logits, forward.starts, strict=True):
        half = len(document_TV) // 2 + 1
        (gradient_BTH,) = torch.autograd.grad(
            _weighted([document_TV[:half]]), forward.embeddings_BTH, retain_graph=True
        )
        size_BT = gradient_BTH.abs().amax(dim=2)
        largest = max(largest, float(size_BT[row, start : start + half].max()))
        size_BT[row, start : start + half] = 0
        leak = max(leak, float(size_BT.max()))
    return leak / max(largest, 1e-30)


def _weighted(logits: Sequence[Tensor]) -> Tensor:
    """A scalar that depends on every logit unevenly, so that no gradient cancels (a plain sum's may)."""
    total = torch.zeros((), device=logits[0].device)
    for document_TV in logits:
        weight_V = torch.cos(torch.arange(document_TV.shape[1], device=document_TV.device).float())
        total = total + (document_TV.float() @ weight_V).sum()
    return total


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    largest = max(float(value.abs().max()) for value in expected)
    return max(
        float((a.float() - b.float()).abs().max()) for a, b in zip(found, expected, strict=True)
    ) / max(largest, 1e-30)
