"""The student's side: its head, transformers' Trainer, checks and evaluation."""
