"""Duplicates and near duplicates, by digests and MinHash sketches."""
