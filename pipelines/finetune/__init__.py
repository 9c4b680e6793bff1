"""Finetune: a customer's photos to a personal model."""

from pipelines.finetune.config import CheckConfig, FinetuneConfig
from pipelines.finetune.run import check, finetune

__all__ = ["CheckConfig", "FinetuneConfig", "check", "finetune"]
