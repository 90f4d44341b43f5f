"""The real teacher: the only room that imports vllm."""
