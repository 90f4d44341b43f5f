"""Weights of segments: sum(w L) / sum(w), the same in every path of the loss, packed, and in a training run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logitstore.manifest.fields import SEGMENTS
from logitstore.records import LabeledSequence, Segment
from logitstore.store import LogitStore
from tests.trainer.stores import label_spec, labeled_sequence, make_store, manifest
from tests.trainer.students import VOCAB_SIZE, tiny_student, tiny_trainer, weights
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.samples import Sample
from trainer.data.sources import StoreSpec
from trainer.errors import GuardError
from trainer.hf.heads import batch_loss, find_head
from trainer.hf.stock_trainer import make_compute_loss_func
from trainer.loss.loss_inputs import LossOutput, TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

WEIGHTS = {"reasoning": 0.3, "tool": 0.0}
SPEC = label_spec(VOCAB_SIZE)


def sequences(count: int = 12) -> list[LabeledSequence]:
    """A prompt, then reasoning, a call, an answer and an end."""
    rng, found = np.random.default_rng(5), []
    for number in range(count):
        one = labeled_sequence(rng, f"r{number}", SPEC, 8 + number % 5, 3)
        kinds = [0, 0, 0, 1, 3, *[2] * (len(one.token_ids_T) - 6), 4]
        found.append(replace(one, segments_T=np.array(kinds, np.uint8)))
    return found


def store_of(place: Path) -> LogitStore:
    plain = manifest(SPEC)
    head = replace(plain, features=(SEGMENTS,), labels=replace(plain.labels, extra_columns=(SEGMENTS,)))
    store = LogitStore.create(place, head)
    for unit, start in enumerate(range(0, 12, 4)):
        store.commit_unit(f"u{unit}", unit, sequences()[start : start + 4], seconds=0.0, worker="test")
    return store


def batch_of(segment_weights: dict[str, float] | None = WEIGHTS, **settings: Any) -> dict[str, Tensor]:
    collator = DistillationCollator(CollateSettings(segment_weights=segment_weights, **settings))
    return collator([Sample(one, SPEC) for one in sequences()[:5]])


def by_hand(logits_BTV: Tensor, batch: dict[str, Tensor], settings: LossSettings) -> Tensor:
    """The formula, a row at a time, from batches without weights."""
    total, weight = torch.zeros(()), 0.0
    for row, sequence in enumerate(sequences()[:5]):
        assert sequence.segments_T is not None
        for place in range(3, len(sequence.token_ids_T)):
            own = WEIGHTS.get(Segment(int(sequence.segments_T[place])).label, 1.0)
            labels_BT = torch.full_like(batch["labels"], -100)
            labels_BT[row, place] = int(sequence.token_ids_T[place])
            one = topk_distillation_loss(logits_BTV, labels_BT, TeacherTargets.from_batch(batch), settings)
            total, weight = total + own * one.loss, weight + own
    return total / weight


@pytest.mark.parametrize(
    "loss", [{}, {"temperature": 2.0, "alpha": 1.0}, {"alpha": 0.0}, {"beta": 0.5}], ids=str
)
def test_the_loss_is_the_weighted_sum_over_the_sum_of_the_weights(loss: dict[str, Any]) -> None:
    settings = LossSettings(**loss)
    temperature: dict[str, Any] = {"temperature": settings.temperature}
    plain, weighted = batch_of(None, **temperature), batch_of(**temperature)
    model = tiny_student()

    def gradient(output: Tensor) -> Tensor:
        model.zero_grad()
        output.backward()
        return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])

    inputs = {key: plain[key] for key in ("input_ids", "attention_mask", "position_ids")}
    wanted = by_hand(model(**inputs).logits, plain, settings)
    expected = gradient(wanted)
    for head in (None, find_head(model)):
        for chunk_rows in (None, 3) if head is not None else (None,):
            found = batch_loss(model, weighted, settings, head=head, chunk_rows=chunk_rows)
            assert float(found.loss) == pytest.approx(float(wanted.detach()), rel=1e-5)
            assert torch.allclose(gradient(found.loss), expected, atol=1e-6)


def test_a_weight_of_0_masks_and_weights_stand_where_labels_are() -> None:
    plain, batch = batch_of(None), batch_of()
    assert "label_weights" not in plain
    for row, sequence in enumerate(sequences()[:5]):
        length = len(sequence.token_ids_T)
        assert batch["labels"][row, 4] == -100
        assert plain["labels"][row, 4] == sequence.token_ids_T[4]
        expected = [0, 0, 0, 0.3, 0, *[1] * (length - 5)]
        assert batch["label_weights"][row, :length].tolist() == pytest.approx(expected)
        assert not batch["label_weights"][row, length:].any()


@pytest.mark.parametrize("attention", ["position_ids_one_row", "block_diagonal"])
def test_packed_batches_have_the_same_loss(attention: Any) -> None:
    model = tiny_student()
    packed = batch_of(pack_length=32, packed_attention=attention)
    padded = batch_of()
    model.config._attn_implementation = "sdpa"
    found = batch_loss(model, packed, LossSettings(), head=find_head(model))
    wanted = batch_loss(model, padded, LossSettings(), head=find_head(model))
    assert float(found.metrics.weight) == pytest.approx(float(wanted.metrics.weight))
    assert float(found.loss) == pytest.approx(float(wanted.loss), rel=1e-5)


def test_weights_of_all_tokens_alike_change_nothing() -> None:
    model = tiny_student()

    def loss(given: dict[str, float] | None) -> LossOutput:
        return batch_loss(model, batch_of(given), LossSettings(), head=find_head(model))

    halves = dict.fromkeys(["reasoning", "tool", "answer", "end"], 0.5)
    assert float(loss(halves).loss) == pytest.approx(float(loss(None).loss), rel=1e-6)
    small = dict.fromkeys(["reasoning", "tool", "answer", "end"], 1e-4)
    assert float(loss(small).loss) == pytest.approx(float(loss(None).loss), rel=1e-4), (
        "sums below 1 divide too"
    )
    assert int(loss(small).metrics.num_rows) == int(loss(None).metrics.num_rows)


def test_training_with_accumulation_equals_a_loop_by_hand(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    trainer = tiny_trainer(
        Path(store.uri),
        tmp_path / "run",
        batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
        collate={"segment_weights": WEIGHTS},
    )
    batches = list(trainer.get_train_dataloader())
    trainer.logit_dataset.restart()
    trainer.train()
    model = tiny_student()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    history = []
    for step in range(2):
        group = batches[2 * step : 2 * step + 2]
        total = sum(float(batch["label_weights"].sum()) for batch in group)
        parts = []
        for batch in group:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
            output = topk_distillation_loss(
                model(**inputs).logits,
                batch["labels"],
                TeacherTargets.from_batch(batch),
                LossSettings(),
                num_items_in_batch=torch.tensor(total),
                label_weights_BT=batch["label_weights"],
            )
            output.loss.backward()
            parts.append(output.loss.item())
        optimizer.step()
        optimizer.zero_grad()
        history.append(sum(parts))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logs] == pytest.approx(history, rel=1e-4)
    for entry in logs:
        mean = 0.5 * entry["distillation"] + 0.5 * entry["cross_entropy"]
        assert mean == pytest.approx(entry["loss"], rel=1e-4), "logged means are by weight as well"
    assert torch.allclose(weights(trainer.model), weights(model), atol=1e-6)
    figures = trainer.evaluate()
    kept = sum(len(one.token_ids_T) - 4 for one in sequences() if not trainer_takes(trainer, one.record_id))
    assert figures["eval_num_rows"] == kept, "weight 0 does not count in evaluation, others do alike"


def trainer_takes(trainer: Any, record_id: str) -> bool:
    dataset = trainer.logit_dataset
    return record_id in {dataset[place].sequence.record_id for place in range(len(dataset))}


def test_stores_and_records_without_segments_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "plain")
    with pytest.raises(GuardError, match="does not know what its tokens are"):
        tiny_trainer(tmp_path / "plain", tmp_path / "run", collate={"segment_weights": WEIGHTS})
    collator = DistillationCollator(CollateSettings(segment_weights=WEIGHTS))
    with pytest.raises(GuardError, match="where = 'segments has answer'"):
        collator([Sample(replace(sequences()[0], segments_T=None), SPEC)])
    with pytest.raises(ValueError, match="finite weight from 0 on"):
        CollateSettings(segment_weights={"thought": 1.0})
    with pytest.raises(ValueError, match="finite weight from 0 on"):
        CollateSettings(segment_weights={"tool": -1.0})
    model = tiny_student()
    make_compute_loss_func(model, LossSettings())
    with pytest.raises(GuardError, match="stock Trainer"):
        model(**batch_of())


def test_training_reads_what_where_selects_by_segments(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    unknown = replace(sequences(13)[12], segments_T=None)
    store.commit_unit("u9", 9, [unknown], seconds=0.0, worker="test")
    assert len(StreamingLogitDataset(store.uri, batch_size=2)) == 13
    chosen = StreamingLogitDataset([StoreSpec(store.uri, where="segments has tool")], batch_size=2)
    assert "r12" not in {chosen[place].sequence.record_id for place in range(len(chosen))}
    assert len(chosen) == 12
