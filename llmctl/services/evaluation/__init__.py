"""The service of `llmctl eval`."""
