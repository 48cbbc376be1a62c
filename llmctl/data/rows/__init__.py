"""Raw rows as they stand in files, and the errors found in them."""
