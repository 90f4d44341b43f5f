"""Many students from one store: a grid of settings, its runs, and what can be said of the best."""
