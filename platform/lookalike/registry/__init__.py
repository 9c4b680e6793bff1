"""Versions of models, the promotion log, and how a model's name becomes a bundle."""

from lookalike.registry.candidate import Candidate
from lookalike.registry.champions import champion, standing
from lookalike.registry.evidence import read_scores
from lookalike.registry.names import CHAMPION, personal_model_name, validate_identifier, validate_model_name
from lookalike.registry.promotion import Outcome, promote
from lookalike.registry.promotion_log import Promotion, PromotionLog
from lookalike.registry.resolution import resolve
from lookalike.registry.returns import begin_anew, champion_now, is_lost, rollback, standing_log
from lookalike.registry.versions import ModelReference, Registry, identify

__all__ = [
    "CHAMPION",
    "Candidate",
    "ModelReference",
    "Outcome",
    "Promotion",
    "PromotionLog",
    "Registry",
    "begin_anew",
    "champion",
    "champion_now",
    "identify",
    "is_lost",
    "personal_model_name",
    "promote",
    "read_scores",
    "resolve",
    "rollback",
    "standing",
    "standing_log",
    "validate_identifier",
    "validate_model_name",
]
