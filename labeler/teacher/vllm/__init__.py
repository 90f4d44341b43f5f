"""The real teacher, the only room that imports vllm; `capture/` runs in the processes of the engine."""
