"""Loading of weights, tokenizers, adapters and quantised layers."""
