"""Services of `llmctl eval` and its subcommands."""
