"""From labeled sequences to one batch of tensors."""
