"""Which units are committed: commit records, index segments, and compaction of the one into the other."""
