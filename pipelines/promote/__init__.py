"""Promotion: the gate's decision about a bundle, a rollback to an earlier champion, and the log of both."""

from pipelines.promote.config import HistoryConfig, PromoteConfig, RollbackConfig
from pipelines.promote.run import history, promote, rollback

__all__ = ["HistoryConfig", "PromoteConfig", "RollbackConfig", "history", "promote", "rollback"]
