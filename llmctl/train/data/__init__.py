"""Tokenized datasets, and their batches for training and evaluation."""
