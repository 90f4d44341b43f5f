"""What runs on a GPU: kernels of the capture and the loss, and heads."""
