"""Import of Megatron-LM's cached logits: tar files of log-probabilities by training iteration.

The layout, from the published sources (NVIDIA/Megatron-LM, 2026-08): a folder of
`cp<rank>_dp<rank>__<iteration>.tar`; in each a `_meta.json`, then `<iteration>.pt.zst` members, torch.save
files of {values: fp16, indices_low: uint16, bit_17: bool}, each a list with one [sequence, batch, K]
tensor per microbatch. Entries that top-p left out have the value -1000.

Row j is the distribution after token j. The tokens themselves are not stored: they are the training
samples in the order of the run and must be given, as an .npy of [samples, sequence length] integers in
the order iteration, data-parallel rank, microbatch, place in the batch. The tail is known at T=1 only,
as 1 minus rounded values.

Shape legend: S positions of a sample, B batch, K stored entries, N label rows.
"""

from __future__ import annotations

import io
import re
import tarfile
import warnings
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from logitstore.common.store_warning import StoreWarning
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import Source, checked_labels
from logitstore.exchange.rows import rows_from_logprobs, whole_numbers
from logitstore.exchange.torch_archive import read_archive
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence

MAX_VOCAB_SIZE = 2**17
MAX_MEMBER_BYTES = 4 * 2**30
"""Bound of one decompressed iteration."""
CHUNK_BYTES = 4 * 2**20
_TAR_NAME = re.compile(r"cp(\d+)_dp(\d+)__(\d+)\.tar")
_MEMBER_NAME = re.compile(r"(\d+)\.pt\.zst")

Microbatch = tuple[np.ndarray, np.ndarray]


def read_megatron(path: Path, *, vocab_size: int | None, tokens_path: Path | None) -> Source:
    """A folder of tars (or one tar) as a source. Raises UnsupportedInputError."""
    if vocab_size is None or not 2 <= vocab_size <= MAX_VOCAB_SIZE:
        raise UnsupportedInputError(
            f"--vocab-size is {vocab_size}; give the width of the teacher's logits, at most "
            f"{MAX_VOCAB_SIZE}, since Megatron's files do not say it"
        )
    groups = _list_tars(path)
    tokens = _load_tokens(tokens_path)
    # Top-p leaves each microbatch its own K, so the files are read once for the largest.
    top_k = max((values_SBK.shape[2] for values_SBK, _ in _all_microbatches(groups)), default=0)
    if top_k == 0:
        raise UnsupportedInputError(f"{path} holds no label rows; the capture is empty")
    labels = LabelSpec(vocab_size, top_k, (1.0,), "gap_f16", "score", "all")
    sequences = _sequences(_all_microbatches(groups), tokens, checked_labels(labels, str(path)))
    return Source("megatron", path.name, labels, sequences, num_rows=None)


def _list_tars(path: Path) -> list[list[Path]]:
    """The tars of each range of iterations, in the order of ranks."""
    found = [path] if path.is_file() else sorted(path.iterdir())
    matched = [(match, item) for item in found if (match := _TAR_NAME.fullmatch(item.name))]
    if not matched:
        raise UnsupportedInputError(
            f"{path} holds no file named like cp0_dp0__1000.tar; give Megatron's folder"
        )
    if any(match[1] != "0" for match, _ in matched):
        raise UnsupportedInputError(
            f"{path} was written with context parallelism, which splits samples over files; only cp0 is read"
        )
    groups: dict[int, dict[int, Path]] = {}
    for match, item in matched:
        groups.setdefault(int(match[3]), {})[int(match[2])] = item
    num_ranks = 1 + max(rank for group in groups.values() for rank in group)
    for first, group in groups.items():
        if missing := set(range(num_ranks)) - group.keys():
            raise UnsupportedInputError(
                f"{path} lacks cp0_dp{min(missing)}__{first}.tar, of {num_ranks} ranks: the tokens of its "
                "samples would be taken for those of others; fetch it too"
            )
    return [[group[rank] for rank in range(num_ranks)] for _, group in sorted(groups.items())]


def _load_tokens(path: Path | None) -> np.ndarray:
    if path is None:
        raise UnsupportedInputError(
            "Megatron stores no tokens; give the training samples with --tokens FILE.npy, integers of shape "
            "[samples, sequence length] in the order of the run"
        )
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UnsupportedInputError(f"--tokens {path} cannot be read as .npy: {error}") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise UnsupportedInputError(f"--tokens {path} must hold integers of shape [samples, sequence length]")
    return tokens


def _all_microbatches(groups: list[list[Path]]) -> Iterator[Microbatch]:
    """In the order of iterations, of ranks within one, of microbatches within a rank.

    Raises UnsupportedInputError for another order, by which samples would have the tokens of others.
    """
    last = -1
    for group in groups:
        for ranks in zip_longest(*map(_iterations, group), fillvalue=(None, ())):
            iterations = [iteration for iteration, _ in ranks]
            first = iterations[0]
            if first is None or any(one != first for one in iterations):
                raise UnsupportedInputError(f"{group[0]} and its siblings hold different iterations")
            if first <= last:
                raise UnsupportedInputError(
                    f"{group[0]} holds iteration {first} after {last}, and the samples of --tokens are in "
                    "the order of the run; write its members in that order"
                )
            last = first
            for _, microbatches in ranks:
                yield from microbatches


def _iterations(path: Path) -> Iterator[tuple[int, list[Microbatch]]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _MEMBER_NAME.fullmatch(member.name)
                file = tar.extractfile(member) if match and member.isreg() else None
                if match and file is not None:
                    yield int(match[1]), _decode_member(file.read(), f"{path}:{member.name}")
    except (tarfile.TarError, OSError) as error:
        raise UnsupportedInputError(f"{path} cannot be read as a tar file: {error}") from error


def _decode_member(data: bytes, where: str) -> list[Microbatch]:
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
            # Members rarely declare their size, so the bound is kept while reading.
            chunks = iter(lambda: reader.read(CHUNK_BYTES), b"")
            plain = b"".join(islice(chunks, MAX_MEMBER_BYTES // CHUNK_BYTES))
    except zstandard.ZstdError as error:
        raise UnsupportedInputError(f"{where} cannot be decompressed: {error}") from error
    saved = read_archive(plain)
    try:
        parts = zip(saved["values"], saved["indices_low"], saved["bit_17"], strict=True)
        return [_microbatch(*part) for part in parts]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedInputError(
            f"{where} does not hold values, indices_low and bit_17: {error}"
        ) from error


def _microbatch(values: Any, low: Any, high: Any) -> Microbatch:
    if not values.shape == low.shape == high.shape or values.ndim != 3:
        raise ValueError(f"tensors of shapes {values.shape}, {low.shape} and {high.shape}, not [S, B, K]")
    if values.dtype.kind != "f" or low.dtype != np.uint16 or high.dtype.itemsize != 1:
        raise ValueError(f"tensors of {values.dtype}, {low.dtype} and {high.dtype}, not floats, uint16, bool")
    ids_SBK = low.astype(np.int32) | (high.astype(np.int32) << 16)
    return values.astype(np.float32), ids_SBK


def _sequences(
    microbatches: Iterator[Microbatch], tokens: np.ndarray, labels: LabelSpec
) -> Iterator[LabeledSequence]:
    sample = 0
    for values_SBK, ids_SBK in microbatches:
        for place in range(values_SBK.shape[1]):
            if sample >= len(tokens) or tokens.shape[1] != values_SBK.shape[0]:
                raise UnsupportedInputError(
                    f"--tokens has shape {tokens.shape}, but sample {sample} has {values_SBK.shape[0]} "
                    "positions; give the samples this capture was made of"
                )
            token_ids_T = whole_numbers(np.asarray(tokens[sample]), f"--tokens of sample {sample}")
            label_N = np.append(token_ids_T[1:], -1)
            rows = rows_from_logprobs(
                values_SBK[:, place], ids_SBK[:, place], label_N, vocab_size=labels.vocab_size
            )
            mask_N = np.ones(rows.num_rows, bool)
            yield LabeledSequence(f"sample-{sample}", 0, token_ids_T, 0, 1, rows, mask_N, "scored")
            sample += 1
    if sample < len(tokens):
        warnings.warn(
            f"--tokens has {len(tokens):,} samples, and the capture the first {sample:,} of them; where "
            "files of it are missing, samples have the tokens of others",
            StoreWarning,
            stacklevel=2,
        )
