"""Measurements of labeling, storing and training, and the demo that runs them all once."""
