"""Models and adapters as files: names, the hub, the store, metadata and provenance."""
