"""Promotion: the gate's decision about a bundle, a rollback to an earlier champion, and the log of both."""

from pipelines.promote.config import ExplainConfig, HistoryConfig, PromoteConfig, RollbackConfig, SignConfig
from pipelines.promote.explain import explain
from pipelines.promote.run import history, promote, rollback, sign

__all__ = [
    "ExplainConfig",
    "HistoryConfig",
    "PromoteConfig",
    "RollbackConfig",
    "SignConfig",
    "explain",
    "history",
    "promote",
    "rollback",
    "sign",
]
