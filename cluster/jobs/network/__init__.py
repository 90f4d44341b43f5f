"""The way to a cluster: its address, headers and token, and what its answers mean."""
