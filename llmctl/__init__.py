"""llmctl takes a local language model through its whole life. This file holds its version only."""

__version__ = "0.1.0"
