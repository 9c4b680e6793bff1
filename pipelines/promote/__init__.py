"""Promotion: the gate's decision about a bundle, a rollback to an earlier champion, and the log of both."""

from pipelines.promote.config import ExplainConfig, HistoryConfig, PromoteConfig, RollbackConfig
from pipelines.promote.explain import explain
from pipelines.promote.run import history, promote, rollback

__all__ = [
    "ExplainConfig",
    "HistoryConfig",
    "PromoteConfig",
    "RollbackConfig",
    "explain",
    "history",
    "promote",
    "rollback",
]
