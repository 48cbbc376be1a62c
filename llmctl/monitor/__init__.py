"""Experiment tracking with MLflow. `open_tracker` starts the record of a run."""

from llmctl.monitor.base import NullTracker, Tracker, tracked
from llmctl.monitor.mlflow_logger import open_tracker
from llmctl.monitor.serving_monitor import ServingMonitor

__all__ = ["NullTracker", "ServingMonitor", "Tracker", "open_tracker", "tracked"]
