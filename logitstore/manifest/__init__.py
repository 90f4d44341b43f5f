"""What a store says of itself, and the strict JSON by which it says it."""
