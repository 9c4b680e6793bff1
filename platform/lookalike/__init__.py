"""Subject-driven image generation: curation, training, evaluation and promotion of Squeeze-MLLM models."""

__version__ = "0.1.0"
