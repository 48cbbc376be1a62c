"""Examples as token sequences with a loss mask, cached on disk."""
