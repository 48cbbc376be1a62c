"""Estimates and plans of the memory that a model needs."""
