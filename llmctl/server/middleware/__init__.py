"""ASGI middleware and the JSON parser that every request passes before its endpoint."""
