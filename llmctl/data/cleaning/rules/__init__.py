"""Rules that judge or repair the texts of a single row."""
