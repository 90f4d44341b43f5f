"""Texts that are near texts of an evaluation set, or near each other."""
