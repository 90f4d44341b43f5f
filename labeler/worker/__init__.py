"""What runs in a worker: units in, committed shards out."""
