"""What the students of `penumbra bench fidelity` learn from: a live teacher, and a store it labeled.

Shape legend: W windows of T tokens, H hidden size of the teacher, V vocabulary, N label rows.

The teacher is the model given, cut to the V ids that matter: every id of the text and the first ids of its
tokenizer. That is a teacher in its own right (a softmax over V ids), and small enough that a CPU trains
dozens of students against its whole distribution.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from labeler.teacher.label_rows import ColumnLayout, columns_from_logits, rows_from_columns
from logitstore.inputs.reading import iter_records
from logitstore.manifest.fields import InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.models.hub import check_model_name
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.samples import Sample
from trainer.loss.loss_inputs import TeacherTargets

WINDOW_TOKENS = 128
TEMPERATURES = (1.0, 2.0, 4.0)
STORED_TOP_K = 64


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """Last hidden states of the teacher for windows of text, and its head: logits when they are needed."""

    token_ids_WT: Tensor
    """int64, ids 0..V of the cut vocabulary."""
    hidden_WTH: Tensor
    weight_VH: Tensor

    @property
    def vocab_size(self) -> int:
        return self.weight_VH.shape[0]

    def logits(self, window_B: Tensor) -> Tensor:
        """[B, T, V]; position t predicts token t + 1."""
        return self.hidden_WTH[window_B] @ self.weight_VH.t()


def text_windows(paths: list[str], teacher: str, max_tokens: int) -> np.ndarray:
    """[W, T] token ids of all text in the records, joined by blank lines and cut; what is left over goes."""
    check_model_name(teacher, revision=None, setting="--teacher")
    tokenizer: Any = AutoTokenizer.from_pretrained(teacher)
    texts = (
        "\n".join(_strings(raw.record))
        for path in paths
        for raw in iter_records(path)
        if raw.record is not None
    )
    token_ids = np.asarray(tokenizer("\n\n".join(texts))["input_ids"][:max_tokens])
    num_windows = len(token_ids) // WINDOW_TOKENS
    if num_windows < 10:
        raise ValueError(
            f"the input holds {len(token_ids)} tokens, not the {10 * WINDOW_TOKENS} that a training and a "
            "held-out part need; give a longer --input"
        )
    return token_ids[: num_windows * WINDOW_TOKENS].reshape(num_windows, WINDOW_TOKENS)


def _strings(value: object, name: str = "") -> list[str]:
    """The text of a record: every string but ids, topics and roles."""
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in _strings(inner, key)]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner, name)]
    return [value] if isinstance(value, str) and name not in ("id", "topic", "role") else []


@torch.no_grad()
def run_teacher(token_ids_WT: np.ndarray, teacher: str, vocab_size: int) -> LiveTeacher:
    """One pass of the teacher over every window, kept as hidden states."""
    model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    kept = np.unique(token_ids_WT)
    if len(kept) > vocab_size:
        raise ValueError(f"the text has {len(kept)} different ids, --vocabulary is {vocab_size}; raise it")
    fill = np.setdiff1d(np.arange(model.config.vocab_size), kept)[: vocab_size - len(kept)]
    kept = np.sort(np.concatenate([kept, fill]))
    ids_WT = torch.from_numpy(token_ids_WT)
    hidden = [model.model(ids_T[None], use_cache=False).last_hidden_state for ids_T in ids_WT]
    return LiveTeacher(
        token_ids_WT=torch.from_numpy(np.searchsorted(kept, token_ids_WT)),
        hidden_WTH=torch.cat(hidden),
        weight_VH=model.lm_head.weight[torch.from_numpy(kept)].clone(),
    )


def stored_targets(teacher: LiveTeacher, windows: Tensor) -> dict[tuple[int, float], TeacherTargets]:
    """Label the windows, write a store, read it back: targets of every window by (K, temperature)."""
    labels = LabelSpec(teacher.vocab_size, STORED_TOP_K, TEMPERATURES, "gap_f16", "score", "all")
    with tempfile.TemporaryDirectory() as folder:
        store = LogitStore.create(str(Path(folder) / "store"), _manifest(labels))
        sequences = [_label(teacher, int(window), labels) for window in windows]
        store.commit_unit("windows", 0, sequences, seconds=0.0, worker="fidelity")
        store.refresh()
        targets = {}
        for top_k in (16, STORED_TOP_K):
            samples = [Sample(sequence, labels) for sequence in store.iter_sequences(top_k)]
            for temperature in TEMPERATURES:
                collate = DistillationCollator(CollateSettings(temperature=temperature))
                targets[top_k, temperature] = TeacherTargets.from_batch(collate(samples))
    return targets


def _label(teacher: LiveTeacher, window: int, labels: LabelSpec) -> LabeledSequence:
    token_ids_T = teacher.token_ids_WT[window].numpy().astype(np.int32)
    layout = ColumnLayout(labels.top_k, labels.temperatures)
    logits_NV = teacher.logits(torch.tensor([window]))[0, :-1].numpy()
    columns = columns_from_logits(logits_NV, token_ids_T[1:], layout)
    return LabeledSequence(
        record_id=f"window-{window}",
        sample_index=0,
        token_ids_T=token_ids_T,
        prompt_length=0,
        label_start=1,
        rows=rows_from_columns(columns, layout, labels.vocab_size),
        loss_mask_N=np.ones(len(token_ids_T) - 1, dtype=bool),
        finish_reason="scored",
    )


def _manifest(labels: LabelSpec) -> Manifest:
    return Manifest(
        teacher=TeacherInfo("teacher cut to V ids", None, "", "float32", None, "transformers", "", "import"),
        tokenizer=TokenizerInfo(fingerprint="", vocab_size=labels.vocab_size),
        labels=labels,
        input=InputInfo(uri="memory", kind="token_ids", fields={"token_ids": "token_ids"}),
        created="1970-01-01T00:00:00Z",
    )
