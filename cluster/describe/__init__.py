"""Descriptions of clusters, rendered for whoever starts them."""
