"""OpenCompass as the judge: it builds the data and prompts and scores; our server is its model."""

from llmctl.evaluation.opencompass.backend import OpenCompassBackend
from llmctl.evaluation.opencompass.venv import setup_venv

__all__ = ["OpenCompassBackend", "setup_venv"]
