"""What a model says: asked once, kept, and known by the model that said it."""
