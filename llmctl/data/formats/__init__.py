"""Dataset formats: parsing rows into examples and rendering examples as rows."""
