"""What a job costs: prices, what every run and server took, and the limit on it."""
