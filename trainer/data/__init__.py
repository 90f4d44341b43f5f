"""Labels streamed from stores, in an order that no restart changes."""
