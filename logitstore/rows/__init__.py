"""Arithmetic and choice over label rows: temperature, entropy, `--where`."""
