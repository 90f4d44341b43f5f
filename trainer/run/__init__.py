"""A training run from its configuration to a saved student."""
