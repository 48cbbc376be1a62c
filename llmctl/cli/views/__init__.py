"""How results look in a terminal: tables, progress, charts."""
