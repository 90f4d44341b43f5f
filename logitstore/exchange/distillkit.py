"""Import of DistillKit's captured logits: Parquet files with compressed log-probabilities.

A row holds `input_ids` and, per token, `compressed_logprobs` and `bytepacked_indices` as bytes; what
the bytes mean is written in a `compression_config.yaml` beside them. The layout, from the project's
published sources (arcee-ai/DistillKit, 2026-03):

- ids: K integers of ceil(log2(d)) bits, most significant bit first, padded to a byte;
- log-probabilities: `exact_k` values in `exact_dtype`, one coefficient per polynomial term in
  `term_dtype`, then per residual bin a scale in `scale_dtype` and its elements of `element_bits`,
  bit-packed as the ids; approximated values are the polynomial at 0, 1, 2, ... (or 0..1) plus residuals;
- with `delta_encoding` all of them are differences along the rank.

Row j is the distribution after token j, so it becomes the label row of position j + 1. The values are
lossy and known only at T=1; where they add up to more than 1 they are scaled back and leave no tail.

Shape legend: N rows (tokens), K stored entries, B bits of an element, J terms of the polynomial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import Source, checked_labels
from logitstore.exchange.rows import rows_from_logprobs, whole_numbers
from logitstore.inputs.raw_record import RawRecord
from logitstore.inputs.reading import iter_records
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence

CONFIG_NAME = "compression_config.yaml"
MAX_ENTRIES = 65_536
_DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<u2"}


@dataclass(frozen=True)
class ResidualBin:
    scale_dtype: str
    element_bits: int
    num_elements: int


@dataclass(frozen=True)
class CompressionConfig:
    """The fields of DistillKit's DistributionQuantizationConfig."""

    d: int
    """Vocabulary size the ids were packed for."""
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    """Powers, "sqrt" or "exp"."""
    term_dtype: str = "float32"
    residual_bins: tuple[ResidualBin, ...] = field(default_factory=tuple)
    delta_encoding: bool = True
    error_diffusion: bool = False
    """How the encoder rounded; of no concern to a decoder."""
    normalize_t: bool = False

    @property
    def id_bits(self) -> int:
        return math.ceil(math.log2(self.d))


def read_distillkit(path: Path, *, config_path: Path | None = None, vocab_size: int | None = None) -> Source:
    """A Parquet file or a folder of them as a source. Raises UnsupportedInputError."""
    folder = path if path.is_dir() else path.parent
    config = load_config(config_path or folder / CONFIG_NAME)
    labels = LabelSpec(vocab_size or config.d, config.k, (1.0,), "gap_f16", "score", "all")
    checked_labels(labels, str(path))
    sequences = (_sequence(raw, config) for raw in iter_records(str(path)))
    return Source("distillkit", path.name, labels, sequences, num_rows=None)


def load_config(path: Path) -> CompressionConfig:
    try:
        import yaml
    except ImportError as error:
        raise UnsupportedInputError(
            "reading DistillKit's compression_config.yaml needs the package pyyaml, which is not installed"
        ) from error
    try:
        value = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise UnsupportedInputError(
            f"{path} cannot be read; give DistillKit's compression_config.yaml with --config: without it the "
            "bytes of its captures mean nothing"
        ) from error
    value = value.get("logprob_compressor", value) if isinstance(value, dict) else value
    try:
        config = _parse_config(dict(value))
    except (TypeError, ValueError, KeyError) as error:
        raise UnsupportedInputError(
            f"{path} is not a DistillKit compression configuration: {error}"
        ) from error
    return config


def decode_ids(packed_NX: np.ndarray, config: CompressionConfig) -> np.ndarray:
    """int32 [N, K] of uint8 [N, X]."""
    return _unpack(packed_NX, config.id_bits, config.k).astype(np.int32)


def decode_logprobs(packed_NX: np.ndarray, config: CompressionConfig) -> np.ndarray:
    """float32 [N, K] of uint8 [N, X]."""
    reader = _Columns(packed_NX)
    exact_NK = reader.floats(config.exact_dtype, config.exact_k)
    approximated = config.k - config.exact_k
    fit_NK = np.zeros((len(packed_NX), approximated), np.float32)
    if config.polynomial_terms:
        coefficients_NJ = reader.floats(config.term_dtype, len(config.polynomial_terms))
        fit_NK = _round(coefficients_NJ @ _terms(config, approximated), config.term_dtype)
    start = 0
    for residual in config.residual_bins:
        scale_N1 = reader.floats(residual.scale_dtype, 1)
        num_bytes = (residual.element_bits * residual.num_elements + 7) // 8
        elements = _unpack(reader.take(num_bytes), residual.element_bits, residual.num_elements)
        values_NK = _dequantize(elements, residual.element_bits) * scale_N1
        fit_NK[:, start : start + residual.num_elements] += values_NK
        start += residual.num_elements
    reader.finish()
    values_NK = np.concatenate([exact_NK, fit_NK], axis=1)
    return np.cumsum(values_NK, axis=1, dtype=np.float32) if config.delta_encoding else values_NK


class _Columns:
    """Fields of fixed width, one after another in each row's bytes."""

    def __init__(self, packed_NX: np.ndarray) -> None:
        self._packed_NX, self._start = packed_NX, 0

    def take(self, num_bytes: int) -> np.ndarray:
        part = self._packed_NX[:, self._start : self._start + num_bytes]
        if part.shape[1] != num_bytes:
            raise ValueError(f"rows of {self._packed_NX.shape[1]} bytes are too short for the configuration")
        self._start += num_bytes
        return np.ascontiguousarray(part)

    def floats(self, dtype: str, count: int) -> np.ndarray:
        stored = np.dtype(_DTYPES[dtype])
        values = self.take(count * stored.itemsize).view(stored)
        if dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)

    def finish(self) -> None:
        if self._start != self._packed_NX.shape[1]:
            raise ValueError(
                f"rows have {self._packed_NX.shape[1]} bytes, the configuration explains {self._start}"
            )


def _unpack(packed_NX: np.ndarray, bits: int, count: int) -> np.ndarray:
    """int64 [N, count] of big-endian integers of `bits` bits."""
    if packed_NX.shape[1] != (bits * count + 7) // 8:
        raise ValueError(
            f"rows of {packed_NX.shape[1]} packed bytes do not hold {count} integers of {bits} bits; the "
            "configuration's d or k is not the one they were written with"
        )
    bits_NKB = np.unpackbits(packed_NX, axis=1, count=bits * count).reshape(-1, count, bits)
    return bits_NKB @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def _dequantize(elements: np.ndarray, bits: int) -> np.ndarray:
    if bits == 1:
        return elements.astype(np.float32) * 2 - 1
    return (elements - (1 << (bits - 1))).astype(np.float32)


def _terms(config: CompressionConfig, count: int) -> np.ndarray:
    """float32 [J, count], in the precision the decoder of the project computes them in."""
    points = np.linspace(0, 1, count) if config.normalize_t else np.arange(count)
    points = _round(points.astype(np.float32), config.term_dtype)
    named = {"sqrt": np.sqrt, "exp": np.exp}
    rows = [
        points**term if isinstance(term, int) else named[term](points) for term in config.polynomial_terms
    ]
    return np.stack([_round(row.astype(np.float32), config.term_dtype) for row in rows])


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as `dtype` would hold them."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return values.astype(np.float32)


def _parse_config(value: dict[str, Any]) -> CompressionConfig:
    bins = tuple(ResidualBin(**residual) for residual in value.pop("residual_bins", None) or ())
    terms = tuple(value.pop("polynomial_terms", None) or ())
    config = CompressionConfig(**value, polynomial_terms=terms, residual_bins=bins)
    dtypes = [config.exact_dtype, config.term_dtype, *(residual.scale_dtype for residual in bins)]
    if unknown := [name for name in dtypes if name not in _DTYPES]:
        raise ValueError(f"dtype {unknown[0]!r} must be one of {', '.join(_DTYPES)}")
    if not 2 <= config.d <= 2**20 or not 0 <= config.exact_k <= config.k <= min(config.d, MAX_ENTRIES):
        raise ValueError(f"d {config.d}, k {config.k}, exact_k {config.exact_k} do not fit together")
    if any(not (term in ("sqrt", "exp") or (type(term) is int and 0 <= term <= 16)) for term in terms):
        raise ValueError(f"polynomial terms {terms} must be powers up to 16, 'sqrt' or 'exp'")
    if any(not 1 <= residual.element_bits <= 32 or residual.num_elements < 1 for residual in bins):
        raise ValueError("residual bins must have elements of 1 to 32 bits")
    if sum(residual.num_elements for residual in bins) > config.k - config.exact_k:
        raise ValueError("residual bins hold more elements than are approximated")
    return config


def _sequence(raw: RawRecord, config: CompressionConfig) -> LabeledSequence:
    where = f"{raw.file}:{raw.line}"
    if raw.record is None:
        raise UnsupportedInputError(f"{where}: {raw.error}")
    try:
        token_ids_T = whole_numbers(np.array(raw.record["input_ids"]), f"{where}: input_ids")
        ids_NK = decode_ids(_bytes_of(raw.record["bytepacked_indices"]), config)
        logprobs_NK = decode_logprobs(_bytes_of(raw.record["compressed_logprobs"]), config)
        num_rows = len(ids_NK)
        if token_ids_T.ndim != 1 or len(logprobs_NK) != num_rows or num_rows > len(token_ids_T):
            raise ValueError(
                f"input_ids of the shape {token_ids_T.shape} have {num_rows} rows of ids and "
                f"{len(logprobs_NK)} of log-probabilities"
            )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, UnsupportedInputError):
            raise
        raise UnsupportedInputError(
            f"{where} does not fit DistillKit's layout ({type(error).__name__}: {error}); are the "
            "configuration and the files of one capture?"
        ) from error
    label_N = np.append(token_ids_T[1:], -1)[:num_rows]
    rows = rows_from_logprobs(logprobs_NK, ids_NK, label_N, vocab_size=config.d)
    mask_N = np.ones(num_rows, bool)
    return LabeledSequence(where, 0, token_ids_T, 0, 1, rows, mask_N, "scored")


def _bytes_of(lists: Any) -> np.ndarray:
    """uint8 [N, X] of the lists of a record. Raises ValueError for numbers that are no bytes."""
    values = np.array(lists)
    is_rows = values.ndim == 2 and values.dtype.kind in "iu"
    if not is_rows or (values.size and not 0 <= values.min() <= values.max() <= 255):
        raise ValueError(f"{values.dtype} of the shape {values.shape} are no rows of bytes")
    return values.astype(np.uint8)
