"""Reading of responses piece by piece, for every format."""
