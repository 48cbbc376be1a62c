"""OpenCompass as the judge: it builds the data and prompts and scores; our server is its model."""

from llmctl.evaluation.opencompass.backend import OpenCompassBackend
from llmctl.evaluation.opencompass.overlay import setup

__all__ = ["OpenCompassBackend", "setup"]
