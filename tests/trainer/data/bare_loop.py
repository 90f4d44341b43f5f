"""Distillation in a loop of one's own: the dataset and the loss, without a trainer.

python bare_loop.py STORE OUT          # run it again after an interruption: it goes on where it stood
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer import (
    CollateSettings,
    DistillationCollator,
    FusedLinearTopKDistillationLoss,
    LogitDataLoader,
    LossSettings,
    StreamingLogitDataset,
    TeacherTargets,
)

TEMPERATURE, NUM_EPOCHS, SAVE_EVERY = 2.0, 2, 4


def main(store: str, out: str) -> float:
    torch.manual_seed(0)
    dataset = StreamingLogitDataset(store, batch_size=4, shuffle=True, seed=0, top_k=8)
    collate = DistillationCollator(CollateSettings(temperature=TEMPERATURE))
    loader = LogitDataLoader(dataset, collate, num_workers=0)
    vocab_size = dataset.sources[0].manifest.labels.vocab_size
    config = LlamaConfig(vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    student = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    loss_of = FusedLinearTopKDistillationLoss(LossSettings(temperature=TEMPERATURE, alpha=0.9))
    checkpoint = Path(out) / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["data"])

    loss, step = float("nan"), 0
    for epoch in range(dataset.epoch, NUM_EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            hidden = student.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
            output = loss_of(
                hidden, student.lm_head.weight, batch["labels"], TeacherTargets.from_batch(batch)
            )
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss, step = output.distillation.item(), step + 1
            if step % SAVE_EVERY == 0:
                parts = {"student": student, "optimizer": optimizer, "data": loader}
                torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
    print(f"{step} steps, distillation loss {loss:.3f}")
    return loss


if __name__ == "__main__":
    main(*sys.argv[1:3])
