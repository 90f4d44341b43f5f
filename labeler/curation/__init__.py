"""Prompts worth labeling: repeats and evaluation questions left out, variations made, quality judged."""
