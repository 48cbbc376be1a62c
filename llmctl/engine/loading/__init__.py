"""Files into modules that run: weights, tokenizers, adapters, quantised layers."""
