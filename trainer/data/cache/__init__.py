"""Copies of shards on a local disk."""
