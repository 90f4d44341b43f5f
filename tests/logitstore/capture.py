"""Labeled sequences made from the capture sample, for the format's tests.

Shape legend: N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence, LabelRows

CAPTURE_SAMPLE = Path(__file__).parents[1] / "data" / "capture_sample.npz"


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to bf16, as a bf16 lm_head emits it."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def load_capture(
    top_k: int, value_kind: str = "gap_f16", path: str | Path = CAPTURE_SAMPLE
) -> tuple[LabelSpec, list[LabeledSequence]]:
    """The capture cut to `top_k` entries; for "logit_f16" its logits are rounded to bf16 first."""
    with np.load(path) as capture:
        arrays = {name: capture[name] for name in capture.files}
    temperatures = tuple(float(temperature) for temperature in arrays["temperatures"])
    spec = LabelSpec(int(arrays["vocab_size"]), top_k, temperatures, value_kind, "score", "all")
    logits_NK = arrays["logits_NK"]
    if value_kind == "logit_f16":
        logits_NK = to_bf16(logits_NK)
    document_N = arrays["document_N"]
    sequences = []
    for document in np.unique(document_N):
        at = np.flatnonzero(document_N == document)
        token_ids = arrays["input_token_N"][at]
        rows = _rows(logits_NK[at], arrays["token_ids_NK"][at], arrays["logsumexp_NT"][at], token_ids, spec)
        sequences.append(
            LabeledSequence(
                f"document-{document}", 0, token_ids, 0, 1, rows, np.ones(len(at), bool), "scored"
            )
        )
    return spec, sequences


def _rows(
    logits_NK: np.ndarray,
    ids_NK: np.ndarray,
    logsumexp_NM: np.ndarray,
    token_ids_N: np.ndarray,
    spec: LabelSpec,
) -> LabelRows:
    logsumexp_NM = logsumexp_NM.astype(np.float32)
    next_token_N = np.append(token_ids_N[1:], -1)
    hit_NK = ids_NK == next_token_N[:, None]
    rank_N = np.where(hit_NK.any(axis=1), hit_NK.argmax(axis=1) + 1, 0).astype(np.int32)
    at_label_N = np.take_along_axis(logits_NK, np.maximum(rank_N - 1, 0)[:, None], axis=1)[:, 0]
    top_k = spec.top_k
    tails = []
    for index, temperature in enumerate(spec.temperatures):
        head_N = np.exp(logits_NK[:, :top_k].astype(np.float64) / temperature).sum(axis=1)
        whole_N = np.exp(logsumexp_NM[:, index].astype(np.float64))
        outside_N = np.maximum(whole_N - head_N, 1e-9 * whole_N)
        # Rounded logits are a distribution of their own: the same tail, a normaliser that fits it.
        logsumexp_NM[:, index] = np.log(outside_N + head_N)
        tails.append(np.log(outside_N / (outside_N + head_N)))
    return LabelRows(
        logits_NK=logits_NK[:, :top_k],
        token_ids_NK=ids_NK[:, :top_k].astype(np.int32),
        count_N=np.full(len(logits_NK), top_k, np.int32),
        logsumexp_NM=logsumexp_NM,
        log_tail_mass_NM=np.stack(tails, axis=1).astype(np.float32),
        label_logprob_N=np.where(rank_N > 0, at_label_N - logsumexp_NM[:, 0], np.nan).astype(np.float32),
        label_rank_N=rank_N,
    )
