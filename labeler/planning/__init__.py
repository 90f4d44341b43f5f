"""From input records to a plan of work units; checks before the start."""
