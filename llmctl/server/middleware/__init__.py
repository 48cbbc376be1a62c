"""What every request passes before its endpoint: identity, keys, limits, strict JSON."""
