"""Versions of models, the promotion log, and how a model's name becomes a bundle."""

from lookalike.registry.candidates import Candidate, Outcome, promote, read_scores
from lookalike.registry.names import CHAMPION, personal_model_name, validate_identifier, validate_model_name
from lookalike.registry.promotions import Promotion, PromotionLog
from lookalike.registry.versions import ModelReference, Registry, identify, resolve

__all__ = [
    "CHAMPION",
    "Candidate",
    "ModelReference",
    "Outcome",
    "Promotion",
    "PromotionLog",
    "Registry",
    "identify",
    "personal_model_name",
    "promote",
    "read_scores",
    "resolve",
    "validate_identifier",
    "validate_model_name",
]
