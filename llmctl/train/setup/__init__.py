"""What is decided before the weights are read: plan, defaults, memory, processes."""
