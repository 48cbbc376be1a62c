"""One forward pass over many sequences: packing, attention, LoRA, threads."""
