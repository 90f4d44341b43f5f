"""Servers on loopback that measurements and tests read from: object storage, and plain files."""
