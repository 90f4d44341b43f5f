"""A store made ready for others: a card, few large shards, and nothing of the machines that made it."""
