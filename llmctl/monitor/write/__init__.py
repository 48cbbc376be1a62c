"""The write side of tracking: events, the spool, delivery to MLflow, recovery after a crash."""
