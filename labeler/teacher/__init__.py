"""What a teacher is, and its two kinds: a fake one and, in `vllm/`, the real one."""
