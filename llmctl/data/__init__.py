"""Data to learn from: read, checked, cleaned, split, converted, and made into masked tokens."""
