"""Processes that commands of this project start."""
