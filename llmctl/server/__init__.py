"""The server room: an OpenAI-compatible face for any engine."""
