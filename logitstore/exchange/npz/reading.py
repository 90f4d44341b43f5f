"""An npz capture as a source of sequences.

Shape legend: N label rows, K stored entries, T temperatures of the file (M elsewhere), S sequences.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import Source, checked_labels, choose_value_kind, label_statistics
from logitstore.exchange.rows import whole_numbers
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence, LabelRows

PROBE_ROWS = 65_536
SMALLEST_TAIL = 2.0**-24
"""Stands for a tail that the capture's float32 normalisers cannot tell from nothing."""
_LAYOUT = {
    "logits_NK": ("f", "NK"),
    "token_ids_NK": ("iu", "NK"),
    "logsumexp_NT": ("f", "NT"),
    "log_tail_mass_NT": ("f", "NT"),
    "document_N": ("iu", "N"),
    "input_token_N": ("iu", "N"),
    "label_token_N": ("iu", "N"),
    "temperatures": ("fiu", "T"),
    "vocab_size": ("iu", ""),
    "record_id": ("Uiu", "S"),
    "sample_index": ("iu", "S"),
}
"""Of each array the kinds of type, as numpy names them, and the axes: a cast would make other numbers of
others."""
_NUMBERS = {"f": "floats", "iu": "whole numbers", "fiu": "numbers", "Uiu": "texts or whole numbers"}
_OPTIONAL = ("log_tail_mass_NT", "label_token_N", "record_id", "sample_index")
_REQUIRED = tuple(name for name in _LAYOUT if name not in _OPTIONAL)
_ROW_ARRAYS = tuple(name for name, (_, axes) in _LAYOUT.items() if axes.startswith("N"))


def read_npz(path: Path, *, top_k: int | None = None, value_kind: str | None = None) -> Source:
    """A capture as a source of sequences, cut to `top_k` entries. Raises UnsupportedInputError."""
    capture = _Capture(path)
    stored_k = capture.shape("logits_NK")[1]
    top_k = top_k or stored_k
    if not 1 <= top_k <= stored_k:
        raise UnsupportedInputError(f"{path} has {stored_k} entries per row; top_k {top_k} must be 1 to that")
    temperatures = tuple(float(temperature) for temperature in capture.whole("temperatures"))
    probe = capture.rows("logits_NK").take(PROBE_ROWS)
    labels = LabelSpec(
        vocab_size=int(capture.whole("vocab_size")),
        top_k=top_k,
        temperatures=temperatures,
        value_kind=value_kind or choose_value_kind(probe),
        mode="score",
        positions="all",
    )
    sequences = _sequences(capture, checked_labels(labels, str(path)))
    return Source("npz", path.name, labels, sequences, num_rows=capture.shape("logits_NK")[0])


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What a damaged, encrypted or strangely compressed archive raises while it is read, in words."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise UnsupportedInputError(f"{where} cannot be read ({error}); make the file again") from error


class _Rows:
    """One array of an npz, read front to back in parts, so that captures may exceed memory."""

    def __init__(self, member: IO[bytes], path: Path, name: str) -> None:
        self._member, self._where = member, f"{path}: array {name}"
        with _told(self._where):
            self._read_head()
        self._left = self.shape[0] if self.shape else 0
        if self.dtype.hasobject:
            raise UnsupportedInputError(f"{self._where} holds Python objects; save it as plain numbers")
        self._rest = self._read_by_columns() if self._lies_by_columns else None

    def _read_head(self) -> None:
        member = self._member
        try:
            version = np.lib.format.read_magic(member)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            self.shape, self._lies_by_columns, self.dtype = read_header(member)
        except ValueError as error:
            raise UnsupportedInputError(f"{self._where} is not a numpy array: {error}") from error

    def take(self, count: int) -> np.ndarray:
        """The next rows, at most `count`."""
        if self._rest is not None:
            part, self._rest = self._rest[:count], self._rest[count:]
            return part
        count = min(count, self._left)
        num_bytes = count * int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with _told(self._where):
            data = self._member.read(num_bytes)
        self._left -= count
        if len(data) != num_bytes:
            raise UnsupportedInputError(f"{self._where} is cut off; make the file again")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def _read_by_columns(self) -> np.ndarray:
        """Whole, since its rows are spread over the file."""
        with _told(self._where):
            data = self._member.read()
        if len(data) != int(np.prod(self.shape)) * self.dtype.itemsize:
            raise UnsupportedInputError(f"{self._where} is cut off; make the file again")
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F")


class _Capture:
    """The arrays of a capture by name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():  # a pipe would make the reader wait for ever
            raise UnsupportedInputError(f"{path} is no file; give the npz file of a capture")
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UnsupportedInputError(f"{path} is not an npz file that can be read: {error}") from error
        self.names = {name.removesuffix(".npy") for name in self._archive.namelist()}
        if missing := [name for name in _REQUIRED if name not in self.names]:
            raise UnsupportedInputError(
                f"{path} lacks the array {missing[0]!r}; a capture has {', '.join(_REQUIRED)}"
            )
        self._check_layout()

    def _check_layout(self) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        for name in (name for name in _LAYOUT if name in self.names):
            kinds, axes = _LAYOUT[name]
            array = self.rows(name)
            if array.dtype.kind not in kinds or len(array.shape) != len(axes):
                raise UnsupportedInputError(
                    f"{self._path}: array {name} is {array.dtype} of the shape {array.shape}, where a "
                    f"capture has {_NUMBERS[kinds]} of the axes ({', '.join(axes)}); make the file again"
                )
            for axis, size in zip(axes, array.shape, strict=True):
                known, other = sizes.setdefault(axis, (size, name))
                if size != known:
                    raise UnsupportedInputError(
                        f"{self._path}: arrays of different lengths: {other} has {known} of axis {axis}, and "
                        f"{name} {size}; make the file again"
                    )

    def rows(self, name: str) -> _Rows:
        return _Rows(self._member(name), self._path, name)

    def _member(self, name: str) -> IO[bytes]:
        with _told(f"{self._path}: array {name}"):
            return self._archive.open(f"{name}.npy")

    def shape(self, name: str) -> tuple[int, ...]:
        return self.rows(name).shape

    def whole(self, name: str) -> np.ndarray:
        with self._member(name) as member, _told(f"{self._path}: array {name}"):
            try:
                return np.lib.format.read_array(member, allow_pickle=False)  # type: ignore[arg-type]
            except ValueError as error:
                raise UnsupportedInputError(f"{self._path}: array {name} cannot be read: {error}") from error


def _sequences(capture: _Capture, labels: LabelSpec) -> Iterator[LabeledSequence]:
    document_N = capture.whole("document_N")
    starts = np.flatnonzero(np.append(True, document_N[1:] != document_N[:-1])) if document_N.size else []
    documents = [int(document_N[start]) for start in starts]
    if len(set(documents)) != len(documents):
        raise UnsupportedInputError(
            "document_N comes back to an earlier document; the rows of one sequence must lie together"
        )
    names, samples = _names(capture, documents)
    present = [name for name in _ROW_ARRAYS if name in capture.names]
    readers = {name: capture.rows(name) for name in present}
    for index, document in enumerate(documents):
        end = starts[index + 1] if index + 1 < len(documents) else len(document_N)
        part = {name: reader.take(int(end - starts[index])) for name, reader in readers.items()}
        yield _sequence(names[document], samples[document], part, labels)


def _names(capture: _Capture, documents: list[int]) -> tuple[dict[int, str], dict[int, int]]:
    ordered = sorted(documents)
    if "record_id" not in capture.names:
        return {document: f"document-{document}" for document in ordered}, dict.fromkeys(ordered, 0)
    names = capture.whole("record_id").tolist()
    samples = capture.whole("sample_index").tolist() if "sample_index" in capture.names else [0] * len(names)
    if not len(names) == len(samples) == len(ordered):
        raise UnsupportedInputError(
            f"record_id names {len(names)} sequences, document_N {len(ordered)}; both must agree"
        )
    return (
        dict(zip(ordered, map(str, names), strict=True)),
        dict(zip(ordered, map(int, samples), strict=True)),
    )


def _sequence(name: str, sample: int, part: dict[str, np.ndarray], labels: LabelSpec) -> LabeledSequence:
    token_N = whole_numbers(part["input_token_N"], f"the tokens of {name!r:.120}")
    label_N = np.append(token_N[1:], -1)
    if "label_token_N" in part:
        label_N = whole_numbers(part["label_token_N"], f"the labels of {name!r:.120}")
    # The last label closes the sequence where it is known.
    token_ids_T = np.append(token_N, label_N[-1:][label_N[-1:] >= 0]).astype(np.int32)
    logits_NK = part["logits_NK"].astype(np.float32)
    ids_NK = whole_numbers(part["token_ids_NK"], f"the ids of {name!r:.120}")
    logprob_N, rank_N = label_statistics(logits_NK, ids_NK, part["logsumexp_NT"][:, 0], label_N)
    top_k = labels.top_k
    tail_NM = cut_log_tail(logits_NK, part["logsumexp_NT"], part.get("log_tail_mass_NT"), labels)
    rows = LabelRows(
        logits_NK=logits_NK[:, :top_k],
        token_ids_NK=ids_NK[:, :top_k],
        count_N=np.isfinite(logits_NK[:, :top_k]).sum(axis=1).astype(np.int32),
        logsumexp_NM=part["logsumexp_NT"].astype(np.float32),
        log_tail_mass_NM=tail_NM,
        label_logprob_N=logprob_N,
        label_rank_N=rank_N,
    )
    mask_N = np.ones(rows.num_rows, bool)
    return LabeledSequence(name, sample, token_ids_T, 0, 1, rows, mask_N, "scored")


def cut_log_tail(
    logits_NK: np.ndarray, logsumexp_NM: np.ndarray, log_tail_NM: np.ndarray | None, labels: LabelSpec
) -> np.ndarray:
    """float32 [N, M]: log mass outside the first `top_k` entries of a capture that may hold more.

    The entries cut off are summed, which is exact; only what lies outside the capture is, where the
    capture does not say it, 1 minus the rest, in float64, and at most what V - K ids no likelier than
    the last entry can have.
    """
    parts = []
    for index, temperature in enumerate(labels.temperatures):
        log_p_NK = logits_NK.astype(np.float64) / temperature - logsumexp_NM[:, index, None]
        cut_N = np.exp(log_p_NK[:, labels.top_k :]).sum(axis=1)
        if log_tail_NM is not None:
            outside_N = np.exp(log_tail_NM[:, index].astype(np.float64))
        else:
            outside_N = _outside(log_p_NK, labels.vocab_size)
        with np.errstate(divide="ignore"):
            parts.append(np.log(cut_N + outside_N))
    return np.minimum(np.stack(parts, axis=1), 0).astype(np.float32)


def _outside(log_p_NK: np.ndarray, vocab_size: int) -> np.ndarray:
    probability_NK = np.exp(log_p_NK)
    count_N = np.isfinite(log_p_NK).sum(axis=1)
    last_N = np.take_along_axis(probability_NK, count_N[:, None] - 1, axis=1)[:, 0]
    most_N = (vocab_size - count_N) * last_N
    left_N = np.maximum(1 - probability_NK.sum(axis=1), SMALLEST_TAIL)
    return np.minimum(left_N, most_N)
