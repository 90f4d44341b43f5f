"""Labels out of the engine's own step: what is put into its processes, and what reads the logits there."""
