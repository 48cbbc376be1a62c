"""Benchmark definitions, dataset readers, prompt templates and downloads."""
