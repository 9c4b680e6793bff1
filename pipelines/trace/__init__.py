"""Lineage both ways: from a model to the photos that it learned from, and from a photo to what was made of it."""

from pipelines.trace.config import TraceImageConfig, TraceModelConfig
from pipelines.trace.image import trace_image
from pipelines.trace.model import trace_model
from pipelines.trace.render import render

__all__ = ["TraceImageConfig", "TraceModelConfig", "render", "trace_image", "trace_model"]
