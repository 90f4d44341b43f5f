"""Students learn from logit stores: streaming dataset, losses and trainers. The teacher is never loaded."""
