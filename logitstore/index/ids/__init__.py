"""The index of record ids beside a segment, and what is read of shards for it."""
