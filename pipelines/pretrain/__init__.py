"""Pretrain a preset's small parts (VAE, MLLM), each alone, before the whole model is trained."""

from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.run import pretrain

__all__ = ["PretrainConfig", "pretrain"]
