"""A student and its teacher on the same tasks: scores, the gap between them, and who should answer what."""
