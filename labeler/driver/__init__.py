"""What runs in the driver: the loop, the scheduler, the pool of workers, what people see of it."""
