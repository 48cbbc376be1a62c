"""Quantizers of Transformers that replace layers while weights are read."""
