"""Labels of no teacher, for measurements that need only their number and size.

Shape legend: N label rows, V vocabulary, K stored entries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from logitstore.manifest.fields import InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.records import LabeledSequence, LabelRows
from logitstore.store import LogitStore

VOCAB_SIZE, TOP_K = 512, 8


def made_up_rows(num_rows: int, rng: np.random.Generator) -> LabelRows:
    """Label rows of random logits, with masses computed from all of them."""
    logits_NV = rng.normal(scale=3.0, size=(num_rows, VOCAB_SIZE)).astype(np.float32)
    ids_NK = np.argpartition(-logits_NV, TOP_K, axis=1)[:, :TOP_K]
    top_NK = np.take_along_axis(logits_NV, ids_NK, axis=1)
    order_NK = np.argsort(-top_NK, axis=1)
    ids_NK, top_NK = (np.take_along_axis(array, order_NK, axis=1) for array in (ids_NK, top_NK))
    exps_NV = np.exp(logits_NV.astype(np.float64))
    sum_N, stored_N = exps_NV.sum(axis=1), np.exp(top_NK.astype(np.float64)).sum(axis=1)
    return LabelRows(
        logits_NK=top_NK,
        token_ids_NK=ids_NK.astype(np.int32),
        count_N=np.full(num_rows, TOP_K, np.int32),
        logsumexp_NM=np.log(sum_N)[:, None].astype(np.float32),
        log_tail_mass_NM=np.log((sum_N - stored_N) / sum_N)[:, None].astype(np.float32),
        label_logprob_N=np.full(num_rows, np.nan, np.float32),
        label_rank_N=np.zeros(num_rows, np.int32),
    )


def made_up_sequence(record_id: str, num_rows: int, rng: np.random.Generator) -> LabeledSequence:
    return LabeledSequence(
        record_id=record_id,
        sample_index=0,
        token_ids_T=rng.integers(0, VOCAB_SIZE, num_rows + 1).astype(np.int32),
        prompt_length=1,
        label_start=1,
        rows=made_up_rows(num_rows, rng),
        loss_mask_N=np.ones(num_rows, bool),
        finish_reason="scored",
    )


MANIFEST = Manifest(
    teacher=TeacherInfo("made-up", None, "sha256:0", "float32", None, "none", "0", "import"),
    tokenizer=TokenizerInfo("", VOCAB_SIZE),
    labels=LabelSpec(VOCAB_SIZE, TOP_K, (1.0,), "gap_f16", "score", "response"),
    input=InputInfo("none", "import", {}),
    created="1970-01-01T00:00:00+00:00",
)
"""Manifest of the stores of made-up labels."""


def empty_store(folder: Path) -> LogitStore:
    return LogitStore.create(str(folder), MANIFEST)
