"""Which machines there are, what they cost, and whether a job fits them."""
