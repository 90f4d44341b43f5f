"""Which units are committed: commit records, index segments, tombstones."""
