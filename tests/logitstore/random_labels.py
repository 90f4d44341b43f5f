"""Small exact labels for the store's tests: rows cut from whole random distributions.

Shape legend: T tokens, N label rows, K stored entries, V vocabulary, M temperatures.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from logitstore.manifest.fields import InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.records import LabeledSequence, LabelRows
from logitstore.store import LogitStore

VOCAB_SIZE = 101
TEMPERATURES = (1.0, 2.0, 4.0)


def make_manifest(top_k: int = 8, *, model: str = "teacher", **config: object) -> Manifest:
    return Manifest(
        teacher=TeacherInfo(model, "main", f"sha256:{model}", "float32", None, "vllm", "0.32.0", "in_engine"),
        tokenizer=TokenizerInfo("sha256:tokenizer", VOCAB_SIZE),
        labels=LabelSpec(VOCAB_SIZE, top_k, TEMPERATURES, "gap_f16", "score", "all"),
        input=InputInfo("input.jsonl", "text", {"text": "text"}),
        created="2026-11-22T00:00:00Z",
        config=dict(config),
    )


def make_rows(
    num_rows: int, top_k: int, rng: np.random.Generator, label_N: np.ndarray, vocab_size: int = VOCAB_SIZE
) -> LabelRows:
    """Rows whose masses are exact; values are such that the format's fp16 gaps hold them exactly."""
    top_N = np.round(rng.normal(8, 2, (num_rows, 1)), 2)
    logits_NV = (top_N - np.round(rng.exponential(4, (num_rows, vocab_size)) * 8) / 8).astype(np.float64)
    logits_NV[np.arange(num_rows), rng.integers(0, vocab_size, num_rows)] = top_N[:, 0]
    order_NV = np.argsort(-logits_NV, axis=1, kind="stable")
    ids_NK = order_NV[:, :top_k]
    return exact_rows(logits_NV, ids_NK, np.take_along_axis(logits_NV, order_NV[:, top_k:], axis=1), label_N)


def exact_rows(
    logits_NV: np.ndarray, ids_NK: np.ndarray, rest_NV: np.ndarray, labels_N: np.ndarray
) -> LabelRows:
    """Rows that keep these ids, the largest logit first; `rest_NV`: the logits of all others, -inf for none."""
    lse_NM = np.stack([np.logaddexp.reduce(logits_NV / t, axis=1) for t in TEMPERATURES], axis=1)
    tail_NM = np.stack([np.logaddexp.reduce(rest_NV / t, axis=1) for t in TEMPERATURES], axis=1) - lse_NM
    at_label_N = logits_NV[np.arange(len(labels_N)), labels_N]
    return LabelRows(
        logits_NK=np.take_along_axis(logits_NV, ids_NK, axis=1).astype(np.float32),
        token_ids_NK=ids_NK.astype(np.int32),
        count_N=np.full(len(labels_N), ids_NK.shape[1], np.int32),
        logsumexp_NM=lse_NM.astype(np.float32),
        log_tail_mass_NM=tail_NM.astype(np.float32),
        label_logprob_N=(at_label_N - lse_NM[:, 0]).astype(np.float32),
        label_rank_N=(logits_NV >= at_label_N[:, None]).sum(axis=1).astype(np.int32),
    )


def make_sequence(
    record_id: str, *, top_k: int = 8, length: int = 12, sample_index: int = 0
) -> LabeledSequence:
    """The same sequence for the same arguments."""
    seed = int.from_bytes(record_id.encode(), "little") + 7919 * sample_index + length
    rng = np.random.default_rng(seed)
    token_ids_T = rng.integers(0, VOCAB_SIZE, length).astype(np.int32)
    rows = make_rows(length - 1, top_k, rng, token_ids_T[1:])
    return LabeledSequence(
        record_id, sample_index, token_ids_T, 0, 1, rows, np.ones(length - 1, bool), "scored"
    )


def make_unit(
    unit_index: int, num_sequences: int = 3, *, top_k: int = 8
) -> tuple[str, list[LabeledSequence]]:
    names = [f"record-{unit_index * num_sequences + place}" for place in range(num_sequences)]
    return f"unit-{unit_index:04d}", [make_sequence(name, top_k=top_k) for name in names]


def commit_units(store: LogitStore, unit_indexes: Iterable[int]) -> None:
    """Commit the units of `make_unit` with these numbers."""
    for unit_index in unit_indexes:
        unit_id, sequences = make_unit(unit_index)
        store.commit_unit(unit_id, unit_index, sequences, seconds=0, worker="w")
