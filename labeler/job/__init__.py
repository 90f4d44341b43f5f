"""What a job keeps in its store and says of itself: lease, status, logs, cost, dry run."""
