"""The read side of tracking: runs, metrics, lineage, files and MLflow's page."""
