"""From input records to a plan of work units: tokenization, prompts, checks before the start."""
