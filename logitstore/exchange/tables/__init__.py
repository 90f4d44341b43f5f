"""Stores as tables, one row per sequence with list columns: Parquet, Arrow IPC and JSONL."""
