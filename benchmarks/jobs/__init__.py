"""Real jobs under faults and at scale."""
