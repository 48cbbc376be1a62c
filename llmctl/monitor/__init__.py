"""Experiment tracking with MLflow. `open_tracker` starts the record of a run."""

from llmctl.monitor.base import Tracker, tracked
from llmctl.monitor.mlflow_logger import check_tracking_uri, open_tracker
from llmctl.monitor.serving_monitor import ServingMonitor

__all__ = ["ServingMonitor", "Tracker", "check_tracking_uri", "open_tracker", "tracked"]
