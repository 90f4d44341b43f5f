"""Shards: one Arrow IPC file per work unit, written and read block by block."""
