"""Names of what a run leaves in its output folder. Loads nothing: a sweep reads runs without torch."""

METRICS_NAME = "metrics.json"
CONFIG_NAME = "train.json"
"""The resolved configuration, from which the run goes on and is evaluated again."""
CHECKPOINTS_NAME = "checkpoints"
TEXTS_NAME = "texts"
SAMPLES_NAME = "samples.jsonl"
