"""Interactive chat in a terminal: line input, slash commands and the display of replies."""
