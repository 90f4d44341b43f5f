"""Real little stores for the tests of the trainer: a bigram teacher, exact masses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.manifest.fields import TEXTS_ONLY, InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.records import LabeledSequence, LabelRows
from logitstore.rows.silent_rows import without_rows
from logitstore.store import LogitStore

TEMPERATURES = (1.0, 2.0, 4.0)


def label_spec(vocab_size: int = 64, top_k: int = 8) -> LabelSpec:
    return LabelSpec(
        vocab_size=vocab_size,
        top_k=top_k,
        temperatures=TEMPERATURES,
        value_kind="logit_f16",
        mode="score",
        positions="response",
    )


def manifest(spec: LabelSpec, fingerprint: str = "", tokenizer_size: int | None = None) -> Manifest:
    return Manifest(
        teacher=TeacherInfo("tests/random", None, "0" * 64, "float32", None, "vllm", "0", "in_engine"),
        tokenizer=TokenizerInfo(fingerprint, tokenizer_size or spec.vocab_size),
        labels=spec,
        input=InputInfo("memory", "token_ids", {}),
        created="2026-11-22T00:00:00Z",
    )


def label_rows(logits_NV: np.ndarray, labels_N: np.ndarray, top_k: int) -> LabelRows:
    """Rows of full logits [N, V], as a teacher would give them; the last label may be unknown (-1)."""
    logits_NV = logits_NV.astype(np.float16).astype(np.float32)
    order_NV = np.argsort(-logits_NV, axis=1, kind="stable")
    ids_NK = order_NV[:, :top_k].astype(np.int32)
    top_NK = np.take_along_axis(logits_NV, ids_NK, axis=1)
    rest_NV = np.take_along_axis(logits_NV, order_NV[:, top_k:], axis=1).astype(np.float64)
    logsumexp_NM = np.stack([_logsumexp(logits_NV.astype(np.float64) / t) for t in TEMPERATURES], axis=1)
    tail_NM = np.stack([_logsumexp(rest_NV / t) for t in TEMPERATURES], axis=1) - logsumexp_NM
    known_N = labels_N >= 0
    label_logit_N1 = np.take_along_axis(logits_NV, np.maximum(labels_N, 0)[:, None], axis=1)
    return LabelRows(
        logits_NK=top_NK,
        token_ids_NK=ids_NK,
        count_N=np.full(len(labels_N), ids_NK.shape[1], dtype=np.int32),
        logsumexp_NM=logsumexp_NM.astype(np.float32),
        log_tail_mass_NM=np.minimum(tail_NM, 0).astype(np.float32),
        label_logprob_N=np.where(known_N, label_logit_N1[:, 0] - logsumexp_NM[:, 0], np.nan).astype(
            np.float32
        ),
        label_rank_N=np.where(known_N, (logits_NV >= label_logit_N1).sum(axis=1), 0).astype(np.int32),
    )


def labeled_sequence(
    rng: np.random.Generator, record_id: str, spec: LabelSpec, length: int, prompt_length: int
) -> LabeledSequence:
    """Tokens drawn from a bigram teacher: aligned with its rows, and something a student can learn."""
    bigrams_VV = np.random.default_rng(99).normal(0, 2.5, (spec.vocab_size, spec.vocab_size))
    noise_TV = rng.gumbel(size=(length, spec.vocab_size))
    tokens = [int(rng.integers(spec.vocab_size))]
    for noise_V in noise_TV[1:]:
        tokens.append(int(np.argmax(bigrams_VV[tokens[-1]] + noise_V)))
    token_ids_T = np.array(tokens, dtype=np.int32)
    label_start = max(prompt_length, 1)
    labels_N = token_ids_T[label_start:]
    logits_NV = bigrams_VV[token_ids_T[label_start - 1 : -1]]
    return LabeledSequence(
        record_id=record_id,
        sample_index=0,
        token_ids_T=token_ids_T,
        prompt_length=prompt_length,
        label_start=label_start,
        rows=label_rows(logits_NV, labels_N, spec.top_k),
        loss_mask_N=np.ones(len(labels_N), dtype=bool),
        finish_reason="scored",
    )


def make_store(
    uri: str | Path,
    units: Sequence[int] = (12, 9, 15, 4),
    *,
    seed: int = 0,
    spec: LabelSpec | None = None,
    lengths: tuple[int, int] = (6, 20),
    prefix: str = "r",
    storage_options: dict[str, Any] | None = None,
    fingerprint: str = "",
    tokenizer_size: int | None = None,
    texts_alone: bool = False,
    cut_every: int | None = None,
) -> LogitStore:
    """A store with so many sequences in each unit; ids are prefix + running number.

    Of `cut_every` sequences one ended at its limit of tokens.
    """
    spec = spec or label_spec()
    rng = np.random.default_rng(seed)
    head = manifest(spec, fingerprint, tokenizer_size)
    if texts_alone:
        labels = replace(spec, support="none", top_k=1, temperatures=(1.0,))
        head = replace(head, labels=labels, features=(TEXTS_ONLY,))
    store = LogitStore.create(str(uri), head, storage_options=storage_options)
    number = 0
    for unit, count in enumerate(units):
        sequences = []
        for _ in range(count):
            length = int(rng.integers(*lengths))
            prompt_length = int(rng.integers(0, length // 2))
            labeled = labeled_sequence(rng, f"{prefix}{number}", spec, length, prompt_length)
            if cut_every is not None and number % cut_every == 0:
                labeled = replace(labeled, finish_reason="length")
            sequences.append(without_rows(labeled) if texts_alone else labeled)
            number += 1
        store.commit_unit(f"unit-{unit}", unit, sequences, seconds=0.0, worker="test")
    return store


def _logsumexp(values_NV: np.ndarray) -> np.ndarray:
    if values_NV.shape[1] == 0:
        return np.full(values_NV.shape[0], -np.inf)
    top_N1 = values_NV.max(axis=1, keepdims=True)
    return (top_N1 + np.log(np.exp(values_NV - top_N1).sum(axis=1, keepdims=True)))[:, 0]
