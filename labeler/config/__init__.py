"""The settings of a labeling job and how they are read."""
