"""Scores of what was said, the gap between them, and what is left of a comparison."""
