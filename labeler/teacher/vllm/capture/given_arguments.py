"""How the ids at which a request's rows are wanted travel with it to vLLM's workers.

Shape legend: N rows of logits, K ids of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from labeler.records import TokenizedPrompt

KEY = "penumbra_given_ids"
"""In `SamplingParams.extra_args`: the first position whose logits have ids, and the ids as bytes of int32."""


def given_arguments(prompt: TokenizedPrompt) -> dict[str, Any] | None:
    """`extra_args` of the request for a prompt; None where no ids came with it."""
    if prompt.given_ids_NK is None:
        return None
    ids_NK = np.ascontiguousarray(prompt.given_ids_NK, dtype=np.int32)
    # The logits of a position are those of the next one's token.
    return {KEY: {"first": prompt.label_start - 1, "ids": ids_NK.tobytes()}}


def given_rows(extra_args: Mapping[str, Any] | None, start: int, stop: int, top_k: int) -> np.ndarray:
    """int32 [N, K] of the positions `start`..`stop`, -1 where a position has no ids or fewer."""
    rows_NK = np.full((max(stop - start, 0), top_k), -1, np.int32)
    value = (extra_args or {}).get(KEY)
    if value is not None:
        ids_NK = np.frombuffer(value["ids"], np.int32).reshape(-1, top_k)
        first, end = max(start, value["first"]), min(stop, value["first"] + len(ids_NK))
        if first < end:
            rows_NK[first - start : end - start] = ids_NK[first - value["first"] : end - value["first"]]
    return rows_NK
