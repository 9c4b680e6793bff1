"""Evaluation on Ray Data: held-out losses, generated images and their scores."""

from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.run import evaluate

__all__ = ["EvaluateConfig", "evaluate"]
