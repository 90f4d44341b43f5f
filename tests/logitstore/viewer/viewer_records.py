"""Label rows with a known full distribution behind them, for the viewer's tests.

Shape legend: N label rows, K stored entries, V vocabulary, M temperatures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from logitstore.manifest.fields import InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.records import LabeledSequence, LabelRows
from logitstore.store import LogitStore
from logitstore.students.snapshots import StudentRows

TEMPERATURES = (1.0, 2.0, 4.0)


def full_logits(rng: np.random.Generator, num_rows: int, vocab_size: int) -> np.ndarray:
    """float32 [N, V] with the steep head and long shoulder of a language model's logits."""
    order_V = np.log(np.arange(1, vocab_size + 1))
    steepness_N1 = rng.uniform(0.6, 2.0, (num_rows, 1))
    logits_NV = 12 - steepness_N1 * order_V + rng.normal(0, 0.4, (num_rows, vocab_size))
    return rng.permuted(logits_NV.astype(np.float32), axis=1)


def rows_of(logits_NV: np.ndarray, top_k: int, labels_N: np.ndarray | None = None) -> LabelRows:
    """What a store keeps of full logits, computed directly from the definition."""
    wide_NV = logits_NV.astype(np.float64)
    order_NV = np.argsort(-wide_NV, axis=1, kind="stable")
    order_NK = order_NV[:, :top_k]
    top_NK = np.take_along_axis(wide_NV, order_NK, axis=1)
    rest_NV = np.take_along_axis(wide_NV, order_NV[:, top_k:], axis=1)
    logsumexp_NM = np.stack([logsumexp(wide_NV / t) for t in TEMPERATURES], axis=1)
    with np.errstate(divide="ignore"):
        tail_NM = np.log(np.stack([np.exp(rest_NV / t).sum(axis=1) for t in TEMPERATURES], axis=1))
    num_rows = len(wide_NV)
    if labels_N is None:
        labels_N = order_NK[:, 0]
    label_logit_N = wide_NV[np.arange(num_rows), labels_N]
    return LabelRows(
        logits_NK=top_NK.astype(np.float32),
        token_ids_NK=order_NK.astype(np.int32),
        count_N=np.full(num_rows, top_k, np.int32),
        logsumexp_NM=logsumexp_NM.astype(np.float32),
        log_tail_mass_NM=(tail_NM - logsumexp_NM).astype(np.float32),
        label_logprob_N=(label_logit_N - logsumexp_NM[:, 0]).astype(np.float32),
        label_rank_N=(wide_NV >= label_logit_N[:, None]).sum(axis=1).astype(np.int32),
    )


def logsumexp(values_NV: np.ndarray) -> np.ndarray:
    top_N1 = values_NV.max(axis=1, keepdims=True)
    return (top_N1 + np.log(np.exp(values_NV - top_N1).sum(axis=1, keepdims=True)))[:, 0]


def sequence_of(
    record_id: str,
    token_ids: list[int],
    rng: np.random.Generator,
    *,
    vocab_size: int,
    top_k: int,
    prompt: int = 0,
) -> LabeledSequence:
    """A scored sequence with a row for every token from the second on, or from the prompt's end."""
    start = max(1, prompt)
    labels_N = np.array(token_ids[start:])
    rows = rows_of(full_logits(rng, len(labels_N), vocab_size), top_k, labels_N)
    return LabeledSequence(
        record_id=record_id,
        sample_index=0,
        token_ids_T=np.array(token_ids, np.int32),
        prompt_length=prompt,
        label_start=start,
        rows=rows,
        loss_mask_N=np.ones(len(labels_N), bool),
        finish_reason="scored",
    )


def manifest_of(vocab_size: int, top_k: int, *, model: str = "made-up", fingerprint: str = "") -> Manifest:
    return Manifest(
        teacher=TeacherInfo(model, None, "sha256:0", "float32", None, "test", "1", "in_engine"),
        tokenizer=TokenizerInfo(fingerprint, vocab_size),
        labels=LabelSpec(vocab_size, top_k, TEMPERATURES, "gap_f16", "score", "all"),
        input=InputInfo("prompts.jsonl", "text", {"text": "text"}),
        created="2026-11-22T00:00:00Z",
    )


def student_rows_of(logits_NV: np.ndarray, teacher: LabelRows, labels_N: np.ndarray) -> StudentRows:
    """A student's rows at its teacher's ids, computed directly from full logits."""
    wide_NV = logits_NV.astype(np.float64)
    taken_NK = np.take_along_axis(wide_NV, teacher.token_ids_NK, axis=1)
    rest_NV = wide_NV.copy()
    np.put_along_axis(rest_NV, teacher.token_ids_NK, -np.inf, axis=1)
    logsumexp_NM = np.stack([logsumexp(wide_NV / t) for t in TEMPERATURES], axis=1)
    tail_NM = np.stack([logsumexp(rest_NV / t) for t in TEMPERATURES], axis=1)
    label_logit_N = wide_NV[np.arange(len(wide_NV)), labels_N]
    rows = LabelRows(
        logits_NK=taken_NK.astype(np.float32),
        token_ids_NK=teacher.token_ids_NK,
        count_N=teacher.count_N,
        logsumexp_NM=logsumexp_NM.astype(np.float32),
        log_tail_mass_NM=(tail_NM - logsumexp_NM).astype(np.float32),
        label_logprob_N=(label_logit_N - logsumexp_NM[:, 0]).astype(np.float32),
        label_rank_N=(wide_NV >= label_logit_N[:, None]).sum(axis=1).astype(np.int32),
    )
    return StudentRows(rows, wide_NV.argmax(axis=1).astype(np.int32), wide_NV.max(axis=1).astype(np.float32))


def fill_large_store(
    store: LogitStore, num_units: int, per_unit: int, letters: list[int], *, num_tokens: int = 24
) -> None:
    """Many short sequences, quickly: each unit has the same label rows, and texts and ids of its own.

    Sequence i of unit u is record `u-i`; every tenth is flagged truncated. Tokens are of `letters`.
    """
    spec = store.manifest.labels
    rng = np.random.default_rng(0)
    templates = [
        sequence_of("", rng.choice(letters, num_tokens + i % 7).tolist(), rng, vocab_size=spec.vocab_size,
                    top_k=spec.top_k, prompt=4)
        for i in range(50)
    ]  # fmt: skip
    for unit in range(num_units):
        sequences = [
            replace(
                templates[i % 50],
                record_id=f"{unit}-{i}",
                token_ids_T=rng.choice(letters, len(templates[i % 50].token_ids_T)).astype(np.int32),
                flags=("truncated",) if i % 10 == 0 else (),
            )
            for i in range(per_unit)
        ]
        store.commit_unit(f"u{unit:06d}", unit, sequences, seconds=1.0, worker="test")
