"""The stages of cleaning: chunks of rows in worker processes, then the whole dataset."""
