"""Everything resolved before the weights are loaded: plan, defaults, memory, run lock."""
