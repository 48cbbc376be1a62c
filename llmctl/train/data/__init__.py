"""Tokenized datasets as the batches of a training step."""
