"""Results folders and reports of an evaluation."""
