"""Bytes per token and decoding, by K and layout."""
