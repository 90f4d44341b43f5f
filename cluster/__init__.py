"""Submits labeling jobs to a Ray cluster and describes such clusters."""
