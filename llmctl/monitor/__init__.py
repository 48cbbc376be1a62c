"""Experiment tracking with MLflow. `open_tracker` starts the record of a run."""

from llmctl.monitor.base import Tracker, tracked
from llmctl.monitor.mlflow_logger import open_tracker
from llmctl.monitor.serving_monitor import ServingMonitor

__all__ = ["ServingMonitor", "Tracker", "open_tracker", "tracked"]
