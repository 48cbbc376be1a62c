"""Operations that use less memory or time in training: attention, LoRA, cross-entropy, norms."""
