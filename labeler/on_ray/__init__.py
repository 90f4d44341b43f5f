"""What the labeler asks of Ray: a cluster, room for replicas, and why something failed there."""
