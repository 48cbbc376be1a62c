"""Continuous batching for the Transformers backend: scheduler, KV caches, sampling, scoring."""
