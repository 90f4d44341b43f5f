"""The rate of labeling, and the labels that other measurements use."""
