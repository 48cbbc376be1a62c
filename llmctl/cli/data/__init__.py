"""The `llmctl data` commands."""
