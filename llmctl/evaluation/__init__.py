"""Evaluation: benchmarks, prompts, scoring, statistics and reports."""
