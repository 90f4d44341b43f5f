"""Which K, what cost: the calculators."""
