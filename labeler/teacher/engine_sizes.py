"""How much a vLLM engine of ours works on at a time, unless `engine_args` says otherwise.

The driver counts with these too, where vLLM is not installed.
"""

from __future__ import annotations

CPU_BATCHED_TOKENS = 512
DEVICE_BATCHED_TOKENS = 2048
"""Tokens of one step. The V1 runner makes a [tokens, V] float32 copy of the logits of each prompt, which
the memory profile does not foresee: 2,048 x 152k x 4 B = 1.2 GB, where vLLM's default of 16,384 takes 10."""
CPU_SEQUENCES = 32
DEVICE_SEQUENCES = 256
QUEUED_BATCHES = 4
"""Full engine steps of tokens handed to the engine at a time: enough never to starve it, and bounded."""
SPARE_SEQUENCES = 1.25
"""Sequences handed to the engine for each it works on, so that a place that falls free is taken at once."""
