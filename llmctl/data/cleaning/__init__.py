"""Cleaning of training data: rules, deduplication, the pipeline and its report."""
