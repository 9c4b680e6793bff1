"""Comparison of models on one suite: evaluations side by side, with paired differences, images and a page."""

from pipelines.compare.config import CompareConfig
from pipelines.compare.run import compare

__all__ = ["CompareConfig", "compare"]
