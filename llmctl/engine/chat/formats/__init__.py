"""Formats of tool calls and reasoning: one module per shape, and the registry of families."""
