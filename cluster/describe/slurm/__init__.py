"""A Slurm batch script, and how its commands run in containers."""
