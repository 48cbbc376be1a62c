"""The OpenCompass backend: OpenCompass reads, prompts and scores; llmctl serves the model."""

from llmctl.evaluation.opencompass.backend import OpenCompassBackend
from llmctl.evaluation.opencompass.venv import setup_venv

__all__ = ["OpenCompassBackend", "setup_venv"]
