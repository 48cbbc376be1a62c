"""What cleaning found, as plain values for tables and JSON."""
