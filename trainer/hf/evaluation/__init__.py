"""A student's figures on held-out rows, and its teacher's."""
