"""Jobs on a Ray cluster: submitted, watched, stopped; and a cluster on this machine."""
