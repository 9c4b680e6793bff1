"""Versions of models, the promotion log, and how a model's name becomes a bundle."""

from lookalike.registry.candidate import Candidate, read_scores, scores_hash
from lookalike.registry.champions import champion, standing
from lookalike.registry.names import CHAMPION, personal_model_name, validate_identifier, validate_model_name
from lookalike.registry.promotion import Outcome, champion_version, promote
from lookalike.registry.promotion_log import Promotion, PromotionLog
from lookalike.registry.resolution import named, resolve
from lookalike.registry.returns import begin_anew, is_lost, rollback, sign_log
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
    "champion_version",
    "identify",
    "is_lost",
    "named",
    "personal_model_name",
    "promote",
    "read_scores",
    "resolve",
    "rollback",
    "scores_hash",
    "sign_log",
    "standing",
    "validate_identifier",
    "validate_model_name",
]
