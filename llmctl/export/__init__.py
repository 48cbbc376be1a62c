"""Trained adapters as models for other programs: merge, verify, GGUF, Modelfile."""
