"""Kubernetes by KubeRay: clusters, jobs and their pods, and what would be refused there."""
