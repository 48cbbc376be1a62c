"""The next token of a sequence: sampling, grammars, log-probabilities, speculation."""
