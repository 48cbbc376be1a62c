"""Reading of GGUF files: tensors and tokenizer."""
