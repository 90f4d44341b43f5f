"""Which figures of an `Evaluation` are the better the lower, and which the higher. Without torch."""

from __future__ import annotations

LOWER_IS_BETTER = ("loss", "kl", "cross_entropy", "calibration_error", "mass_beyond_tokenizer")
""""loss" is the Trainer's name for the KL."""
HIGHER_IS_BETTER = ("top1_agreement", "accuracy", "student_mass", "acceptance_at_least", "acceptance_at_most")
