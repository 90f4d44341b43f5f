"""Input records of the files that people have."""
