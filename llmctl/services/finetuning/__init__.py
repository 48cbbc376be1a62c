"""The service of `llmctl finetune`: settings, run, benchmarks before and after."""
