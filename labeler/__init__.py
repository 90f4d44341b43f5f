"""Labels prompts with a teacher: Ray actors run vLLM and write top-K logits into a store."""
