"""The actors of a job: their places, what becomes of them, and whether the cluster has room."""
