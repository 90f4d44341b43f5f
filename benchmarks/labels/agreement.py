"""A store's labels against `transformers` in float32 on the same token ids.

    penumbra bench agreement build/store --teacher DIR

Exit status 1 if the top id differs on more than 0.1% of the rows, the set of the K ids on more than 1%, or
a value by more than its fp16 rounding and 0.01. For a teacher labeled in float32; one in bf16 differs more.

Shape legend: T tokens, N label rows, K stored entries, M temperatures, V vocabulary.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report.results import Figure, Result, publish
from logitstore.common.options import positive
from logitstore.models.hub import check_model_name
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore

LEAST_SAME_TOP = 0.999
LEAST_SAME_SET = 0.99
MOST_EXCESS = 1e-2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", help="folder or URL of the store")
    parser.add_argument("--teacher", default=".demo/teacher", help="Hugging Face id or folder of its teacher")
    parser.add_argument("--limit", type=positive, help="look at the first so many sequences only")
    parser.add_argument("--out", type=Path, default=Path("build/agreement"), help="folder of the JSON")
    parser.add_argument("--quiet", action="store_true", help="print no table")


def run(args: argparse.Namespace) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    check_model_name(args.teacher, revision=None, setting="--teacher")
    model = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    store = LogitStore.open(args.store)
    temperatures = store.manifest.labels.temperatures
    found: dict[str, list[np.ndarray]] = {}
    num_sequences = 0
    for item in store.iter_sequences():
        if num_sequences == args.limit:
            break
        num_sequences += 1
        for name, values in compare(item, reference_logits(model, item), temperatures).items():
            found.setdefault(name, []).append(values)
    if not found:
        raise ValueError(f"{args.store} holds no sequence; label something first")
    result = build_result({name: np.concatenate(values) for name, values in found.items()}, num_sequences)
    publish(result, args.out, quiet=args.quiet)
    agrees = (
        result.figure("same_top_share").value >= LEAST_SAME_TOP
        and result.figure("same_set_share").value >= LEAST_SAME_SET
        and result.figure("largest_excess").value <= MOST_EXCESS
    )
    return 0 if agrees else 1


def reference_logits(model: Any, item: LabeledSequence) -> np.ndarray:
    """float64 [N, V], of the labeled positions."""
    import torch

    with torch.inference_mode():
        ids = torch.as_tensor(item.token_ids_T[None].astype(np.int64))
        logits_TV = model(ids).logits[0]
    return logits_TV[item.label_start - 1 : item.label_start - 1 + item.rows.num_rows].double().numpy()


def compare(
    item: LabeledSequence, logits_NV: np.ndarray, temperatures: tuple[float, ...]
) -> dict[str, np.ndarray]:
    """By row: same top id, same ids as a set, and how far values and masses are off."""
    rows = item.rows
    ids_NK = rows.token_ids_NK.astype(np.int64)
    top_k = ids_NK.shape[1]
    best_NK = np.argpartition(-logits_NV, top_k - 1, axis=1)[:, :top_k]
    theirs_NK = np.take_along_axis(logits_NV, ids_NK, 1)
    # A value is an fp16 gap below the row's top, so its rounding is that of the gap.
    gap_NK = (rows.logits_NK[:, :1] - rows.logits_NK).astype(np.float16)
    rounding_NK = np.spacing(gap_NK).astype(np.float64) / 2
    outside_NV = logits_NV.copy()
    np.put_along_axis(outside_NV, ids_NK, -np.inf, 1)
    actual_N = item.token_ids_T[item.label_start :]
    label_N = logits_NV[np.arange(len(actual_N)), actual_N] - _logsumexp(logits_NV[: len(actual_N)])
    off_NM, tail_off_NM = np.empty(rows.logsumexp_NM.shape), np.empty(rows.logsumexp_NM.shape)
    for index, temperature in enumerate(temperatures):
        whole_N = _logsumexp(logits_NV / temperature)
        off_NM[:, index] = np.abs(rows.logsumexp_NM[:, index] - whole_N)
        tail_N = _logsumexp(outside_NV / temperature) - whole_N
        tail_off_NM[:, index] = np.abs(rows.log_tail_mass_NM[:, index] - tail_N)
    return {
        "same_top": logits_NV.argmax(axis=1) == ids_NK[:, 0],
        "same_set": (np.sort(best_NK, axis=1) == np.sort(ids_NK, axis=1)).all(axis=1),
        "excess": (np.abs(rows.logits_NK - theirs_NK) - rounding_NK).max(axis=1),
        "normaliser": off_NM.max(axis=1),
        "tail": tail_off_NM.max(axis=1),
        "label": np.abs(rows.label_logprob_N[: len(label_N)] - label_N),
    }


def _logsumexp(x_NV: np.ndarray) -> np.ndarray:
    top_N1 = x_NV.max(axis=1, keepdims=True)
    return np.log(np.exp(x_NV - top_N1).sum(axis=1)) + top_N1[:, 0]


def build_result(found: dict[str, np.ndarray], num_sequences: int) -> Result:
    same_top, same_set = float(found["same_top"].mean()), float(found["same_set"].mean())
    excess = float(found["excess"].max())
    return Result.of(
        "agreement",
        meaning=f"{same_top:.2%} of the store's rows have the top id of transformers in float32 on the same "
        f"token ids, and logits differ by at most {excess:.2g} beyond their rounding.",
        columns=("what", "value", "allowed"),
        rows=[
            ("sequences", num_sequences, None),
            ("label rows", len(found["same_top"]), None),
            ("rows with the same top id, share", same_top, LEAST_SAME_TOP),
            ("rows with the same K ids, share", same_set, LEAST_SAME_SET),
            ("largest difference of a logit beyond its fp16 rounding", excess, MOST_EXCESS),
            ("largest difference of a normaliser, nats", float(found["normaliser"].max()), None),
            ("largest difference of a log tail mass, nats", float(found["tail"].max()), None),
            ("largest difference of the label's logprob, nats", float(found["label"].max()), None),
        ],
        figures=[
            Figure.of("same_top_share", same_top, ""),
            Figure.of("same_set_share", same_set, ""),
            Figure.of("largest_excess", excess, ""),
        ],
    )
