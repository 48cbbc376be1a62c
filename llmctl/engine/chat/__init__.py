"""Between messages and tokens: chat templates, control tokens, response parsing, tool choice."""
