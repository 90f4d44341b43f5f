"""The settings of a description: one section for each place that a cluster may be in."""
