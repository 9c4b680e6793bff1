"""Pretrain a preset's small parts (VAE, MLLM), each alone, before the whole model is trained."""

from pipelines.pretrain.run import PretrainConfig, pretrain

__all__ = ["PretrainConfig", "pretrain"]
