"""Finetune: a customer's photos to a personal model."""

from pipelines.finetune.check import check, table_of
from pipelines.finetune.config import CancelConfig, CheckConfig, DeliverConfig, FinetuneConfig, StatusConfig
from pipelines.finetune.request import cancel, deliver, status
from pipelines.finetune.run import finetune

__all__ = [
    "CancelConfig",
    "CheckConfig",
    "DeliverConfig",
    "FinetuneConfig",
    "StatusConfig",
    "cancel",
    "check",
    "deliver",
    "finetune",
    "status",
    "table_of",
]
