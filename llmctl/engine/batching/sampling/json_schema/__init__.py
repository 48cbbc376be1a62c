"""JSON schemas, rewritten into what the grammar library enforces exactly."""

from llmctl.engine.batching.sampling.json_schema.normalize import NormalizedSchema, normalize

__all__ = ["NormalizedSchema", "normalize"]
