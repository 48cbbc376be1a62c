"""Kernels that train faster or in less memory: attention, LoRA, cross entropy, norms, MLPs."""
