"""Erase: remove a customer, or one of its subjects, and prove it by a signed receipt."""

from pipelines.erase.config import EraseConfig, PlanConfig, SweepConfig, VerifyConfig
from pipelines.erase.run import erase, plan
from pipelines.erase.sweep import sweep
from pipelines.erase.verify import verify_receipt

__all__ = ["EraseConfig", "PlanConfig", "SweepConfig", "VerifyConfig", "erase", "plan", "sweep", "verify_receipt"]
