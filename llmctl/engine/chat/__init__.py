"""Conversion between messages and tokens: templates, control tokens, parsing, tool choice."""
