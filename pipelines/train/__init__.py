"""Training on Ray: the worker group, its data, and the bundle that comes out."""

from lookalike.training.config import TrainConfig
from pipelines.train.run import train

__all__ = ["TrainConfig", "train"]
