"""Sections of a run's configuration that have modules of their own."""
