"""From labeled sequences to one batch of tensors, padded or packed.

Shape legend: B rows of the batch, T tokens, N label rows of all sequences together, K stored entries.
Every key is label-aligned: index t of `labels` and of the `teacher_*` keys is about token t of
`input_ids`. Nothing is shifted here; the loss shifts, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from logitstore.manifest.fields import LabelSpec
from logitstore.records import SEGMENT_NAMES, LabeledSequence, LabelRows
from logitstore.rows import temperature as temperatures
from trainer.batch.batch_memory import Layout, zeros
from trainer.batch.collate_settings import LABEL_WEIGHTS, TEACHER_KEYS, CollateSettings
from trainer.batch.packing import Place, laid_out, one_per_row, packed
from trainer.data.samples import ANY_STEP, Sample
from trainer.errors import GuardError

PADDING_POSITIONS = 8
"""Positions of padding begin again after so many."""


class DistillationCollator:
    """`collate_fn` for samples of a StreamingLogitDataset, or rows of samples of one that packs.

    Gives `input_ids`, `attention_mask`, `position_ids`, `labels` [B, T] and, with a teacher,
    `teacher_token_ids` int64, `teacher_logprobs` float32, `teacher_mask` bool [B, T, K] and
    `teacher_tail_logprob` float32 [B, T]. Where no label row lies, the mask is empty and the tail is 0
    (all mass), which means nothing.
    """

    def __init__(self, settings: CollateSettings) -> None:
        self.settings = settings

    def __call__(self, items: Sequence[Sample] | Sequence[Sequence[Sample]]) -> dict[str, Tensor]:
        samples, rows = _flattened(items)
        _check_one_step(samples)
        settings = self.settings
        if settings.pack_length is not None and settings.packed_attention is None:
            raise ValueError(
                f"pack_length={settings.pack_length} needs packed_attention: what keeps documents apart "
                "depends on the student. Give CollateSettings packed_attention="
                "trainer.hf.checks.packing_check.choose_packed_attention(model, pack_length=...)"
            )
        lengths = [len(sample.sequence.token_ids_T) for sample in samples]
        if settings.token_limit is not None:
            lengths = [min(length, settings.token_limit) for length in lengths]
        places, shape_BT = _places(lengths, rows, settings)
        if settings.student_vocab_size is not None:
            for sample, length in zip(samples, lengths, strict=True):
                _check_ids(sample, length, settings.student_vocab_size)
        batch = zeros(_layout(samples, shape_BT, settings))
        arrays = {key: tensor.numpy() for key, tensor in batch.items()}
        _fill_token_keys(arrays, samples, places, settings)
        if settings.with_teacher:
            _fill_teacher_keys(arrays, samples, places, settings)
        if settings.pack_length is not None and settings.packed_attention == "position_ids_one_row":
            batch = {key: tensor.flatten(0, 1).unsqueeze(0) for key, tensor in batch.items()}
        if settings.count_tokens:
            batch["token_counts"] = _token_counts(samples, places, shape_BT)
        return {settings.column_aliases.get(key, key): tensor for key, tensor in batch.items()}


def _flattened(
    items: Sequence[Sample] | Sequence[Sequence[Sample]],
) -> tuple[list[Sample], list[list[int]] | None]:
    """All samples, and which of them share a row where a dataset has packed them."""
    samples: list[Sample] = []
    rows: list[list[int]] | None = None
    for item in items:
        if isinstance(item, Sample):
            samples.append(item)
        else:
            rows = [] if rows is None else rows
            rows.append(list(range(len(samples), len(samples) + len(item))))
            samples += item
    return samples, rows


def _places(
    lengths: Sequence[int], rows: Sequence[Sequence[int]] | None, settings: CollateSettings
) -> tuple[list[Place], tuple[int, int]]:
    """(where each sequence goes, [rows, width])."""
    multiple = settings.pad_to_multiple_of
    if settings.pack_length is None:
        return one_per_row(lengths, multiple)
    if rows is None:
        return packed(lengths, settings.pack_length, multiple)
    fullest = max(sum(lengths[index] for index in row) for row in rows)
    if fullest > settings.pack_length:
        raise ValueError(
            f"a packed row has {fullest} tokens, pack_length={settings.pack_length} is less: give "
            "StreamingLogitDataset a Packing with row_tokens=pack_length and the same limit on sequences"
        )
    return laid_out(lengths, rows, settings.pack_length, multiple)


def _check_ids(sample: Sample, length: int, student_vocab_size: int) -> None:
    largest = int(sample.sequence.token_ids_T[:length].max(initial=0))
    if largest >= student_vocab_size:
        raise GuardError(
            f"record {sample.sequence.record_id} has the token id {largest}, the student only "
            f"{student_vocab_size} ids: its vocabulary is smaller than the teacher's tokenizer. Use a "
            "student with that tokenizer, or enlarge its embedding (resize_token_embeddings)"
        )


def _layout(samples: Sequence[Sample], shape_BT: tuple[int, int], settings: CollateSettings) -> Layout:
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "input_ids": (shape_BT, torch.int64),
        "labels": (shape_BT, torch.int64),
        "position_ids": (shape_BT, torch.int64),
    }
    if settings.segment_weights:
        layout[LABEL_WEIGHTS] = (shape_BT, torch.float32)
    if settings.pack_length is None:
        layout["attention_mask"] = (shape_BT, torch.int64)
    elif settings.packed_attention in ("block_diagonal", "block_diagonal_additive"):
        dtype = torch.bool if settings.packed_attention == "block_diagonal" else torch.float32
        layout["attention_mask"] = ((shape_BT[0], 1, shape_BT[1], shape_BT[1]), dtype)
    if settings.store_temperatures:
        layout["loss_store"] = (shape_BT, torch.int64)
    if settings.with_teacher:
        num_entries = max(sample.sequence.rows.token_ids_NK.shape[1] for sample in samples)
        shape_BTK = (*shape_BT, num_entries)
        layout |= {
            "teacher_token_ids": (shape_BTK, torch.int64),
            "teacher_logprobs": (shape_BTK, torch.float32),
            "teacher_tail_logprob": (shape_BT, torch.float32),
            "teacher_mask": (shape_BTK, torch.bool),
        }
    return layout


def _fill_token_keys(
    arrays: Mapping[str, np.ndarray],
    samples: Sequence[Sample],
    places: Sequence[Place],
    settings: CollateSettings,
) -> None:
    input_ids_BT, labels_BT = arrays["input_ids"], arrays["labels"]
    position_ids_BT, shape_BT = arrays["position_ids"], input_ids_BT.shape
    input_ids_BT[...] = settings.pad_token_id
    labels_BT[...] = settings.ignore_index
    document_BT = np.full(shape_BT, -1, dtype=np.int32)
    for row in range(shape_BT[0]):
        # Padding is like short documents behind the last one: no position leaves the student's context.
        end = max(place.start + place.length for place in places if place.row == row)
        position_ids_BT[row, end:] = np.arange(shape_BT[1] - end) % PADDING_POSITIONS
    for document, (sample, place) in enumerate(zip(samples, places, strict=True)):
        sequence, row = sample.sequence, place.row
        stop = place.start + place.length
        input_ids_BT[row, place.start : stop] = sequence.token_ids_T[: place.length]
        document_BT[row, place.start : stop] = document
        position_ids_BT[row, place.start : stop] = np.arange(place.length)
        count = _rows_within(sample, place)
        counted, weights = counted_labels(sequence, count, settings.segment_weights)
        if settings.segment_weights:
            arrays[LABEL_WEIGHTS][row, place.start + counted] = weights
        labels_BT[row, place.start + counted] = sequence.token_ids_T[counted]
        if settings.store_temperatures:
            arrays["loss_store"][row, place.start : stop] = sample.store
    if settings.pack_length is None:
        arrays["attention_mask"][...] = document_BT >= 0
    elif settings.packed_attention == "block_diagonal":
        arrays["attention_mask"][...] = _block_diagonal(document_BT)
    elif settings.packed_attention == "block_diagonal_additive":
        arrays["attention_mask"][~_block_diagonal(document_BT)] = np.finfo(np.float32).min


def counted_labels(
    sequence: LabeledSequence, num_rows: int, segment_weights: Mapping[str, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the tokens of the first `num_rows` label rows that count in a loss, and their weights,
    float32. A token of a segment whose weight is 0 does not count. Raises GuardError, as `_weights`."""
    counted = np.flatnonzero(sequence.loss_mask_N[:num_rows]) + sequence.label_start
    if not segment_weights:
        return counted, np.ones(len(counted), np.float32)
    weights = _weights(sequence, segment_weights)[counted]
    return counted[weights > 0], weights[weights > 0]


def _weights(sequence: LabeledSequence, segment_weights: Mapping[str, float]) -> np.ndarray:
    """float32 [T]."""
    if sequence.segments_T is None:
        raise GuardError(
            f"record {sequence.record_id} does not know what its tokens are, so segments cannot be weighted; "
            "leave segment_weights out (data.segments in a configuration), or leave the record out by "
            "where = 'segments has answer'"
        )
    by_number = np.array([segment_weights.get(name, 1.0) for name in SEGMENT_NAMES], np.float32)
    return by_number[sequence.segments_T]


def _block_diagonal(document_BT: np.ndarray) -> np.ndarray:
    """bool [B, 1, T, T]: token t sees the tokens of its own document up to itself; padding sees itself,
    as a row without anything to see would become NaN."""
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    num_tokens = document_BT.shape[1]
    causal_TT = np.tri(num_tokens, dtype=bool)
    real_BTT = (document_BT >= 0)[:, :, None] | np.eye(num_tokens, dtype=bool)
    return (same_BTT & causal_TT & real_BTT)[:, None]


def _fill_teacher_keys(
    arrays: Mapping[str, np.ndarray],
    samples: Sequence[Sample],
    places: Sequence[Place],
    settings: CollateSettings,
) -> None:
    token_ids_BTK, logprobs_BTK, tail_BT, mask_BTK = (arrays[key] for key in TEACHER_KEYS)
    logprobs_BTK[...] = -np.inf
    shift = 1 if settings.alignment == "logit" else 0
    for sample, place in zip(samples, places, strict=True):
        temperature = _temperature_of(sample, settings)
        if temperature is None:
            continue
        count = _rows_within(sample, place)
        rows = sample.sequence.rows.slice(0, count)
        first = place.start + sample.sequence.label_start - shift
        where = (place.row, slice(first, first + count))
        width = rows.token_ids_NK.shape[1]
        token_ids_BTK[where][:, :width] = rows.token_ids_NK
        logprobs_BTK[where][:, :width], tail_BT[where] = _distributions(
            rows, sample.labels, temperature, renormalize=settings.renormalize
        )
        mask_BTK[where][:, :width] = np.arange(width) < rows.count_N[:, None]


def _temperature_of(sample: Sample, settings: CollateSettings) -> float | None:
    return settings.store_temperatures[sample.store] if settings.store_temperatures else settings.temperature


def _distributions(
    rows: LabelRows, labels: LabelSpec, temperature: float, *, renormalize: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities of the stored entries [N, K], log tail mass [N]) at the temperature."""
    if not renormalize:
        return (
            temperatures.logprobs(rows, labels, temperature),
            temperatures.log_tail_mass(rows, labels, temperature),
        )
    scaled_NK = rows.logits_NK / np.float32(temperature)
    scaled_NK = scaled_NK - scaled_NK[:, :1]
    total_N1 = np.log(np.exp(scaled_NK).sum(axis=1, keepdims=True))
    return scaled_NK - total_N1, np.full(rows.num_rows, -np.inf, dtype=np.float32)


def _token_counts(samples: Sequence[Sample], places: Sequence[Place], shape_BT: tuple[int, int]) -> Tensor:
    whole = [Place(0, 0, len(sample.sequence.token_ids_T)) for sample in samples]
    cut = sum(
        _rows_within(sample, all_of_it) - _rows_within(sample, place)
        for sample, all_of_it, place in zip(samples, whole, places, strict=True)
    )
    return torch.tensor([sum(place.length for place in places), shape_BT[0] * shape_BT[1], cut])


def _rows_within(sample: Sample, place: Place) -> int:
    """Label rows of the tokens that were kept; a row one past the last token has no label."""
    return max(0, min(sample.sequence.rows.num_rows, place.length - sample.sequence.label_start))


def _check_one_step(samples: Sequence[Sample]) -> None:
    """With several workers a batch must be one step of the dataset, or the order is not the promised one."""
    worker = get_worker_info()
    steps = {sample.step for sample in samples}
    if worker is not None and worker.num_workers > 1 and len(steps) > 1 and ANY_STEP not in steps:
        raise ValueError(
            f"a batch of {len(samples)} samples spans {len(steps)} steps of the dataset, so with "
            f"{worker.num_workers} workers the order would depend on their number; give "
            f"StreamingLogitDataset the DataLoader's batch_size ({len(samples)})"
        )
