"""Rows as they stand in files, their errors, and the digests that identify them."""
