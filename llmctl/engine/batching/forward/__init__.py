"""The forward pass over a batch of sequences: packing, attention, linear layers, LoRA, threads."""
