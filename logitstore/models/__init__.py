"""Models by name or folder: whether they can be had, and whether their files are whole."""
