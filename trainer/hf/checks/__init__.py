"""Whether student, store and loss fit together, before anything is trained."""
