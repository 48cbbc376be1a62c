"""Remembers every run: `open_tracker` to write, `run_store` to read. The one door to MLflow."""

from llmctl.monitor.base import NullTracker, Tracker, tracked
from llmctl.monitor.factory import open_tracker
from llmctl.monitor.serving_monitor import ServingMonitor

__all__ = ["NullTracker", "ServingMonitor", "Tracker", "open_tracker", "tracked"]
