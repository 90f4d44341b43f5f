"""The distillation losses, on logits and fused with the last projection."""
