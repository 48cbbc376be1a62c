"""Benchmarks: their subjects, files, prompts and downloads."""
