"""Dataset preparation: reading, checking, cleaning, splitting, converting and tokenising."""
