"""What a run reads: the datasets of its stores, and plain text as stores."""
