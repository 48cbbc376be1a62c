"""One module per endpoint of the HTTP API."""
