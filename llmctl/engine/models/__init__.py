"""Models and adapters on disk: names, hub, store, metadata and provenance."""
