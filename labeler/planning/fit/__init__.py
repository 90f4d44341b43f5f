"""Whether a job fits machines, before any is started: the disks of its store and the memory of GPUs."""
