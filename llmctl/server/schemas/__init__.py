"""Requests and responses as pydantic models, field by field as OpenAI documents them."""
