"""The service of `llmctl finetune`."""
