"""The configurations of `jobs/promote.py`, one for each subcommand."""

from dataclasses import field

from lookalike.config import IDENTITY_IF_SET, NOT_IDENTITY
from lookalike.errors import ConfigError
from lookalike.evaluation.gate import GateConfig
from lookalike.values import Count, configuration

_LONGEST = 1000  # characters of a reason


@configuration()
class PromoteConfig:
    """Judge a bundle by its scores, and make it champion or record why not."""

    model: str
    """Name of the registered model: lower-case letters, digits, '_' and '-', or CUSTOMER--SUBJECT."""
    scores: str = field(metadata=NOT_IDENTITY)
    """URI of the bundle's scores.json, or of the prefix that an evaluation wrote."""
    out: str = field(metadata=NOT_IDENTITY)
    """URI that receives decision.json."""
    bundle: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of the bundle, if it was moved since it was evaluated."""
    champion_scores: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of the champion's scores; by default those that its version names. Without a champion only floors count."""
    log: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Prefix of the promotion log of a new model (an existing one has its log); by default beside ``out``."""
    begin_anew: str | None = field(default=None, metadata=IDENTITY_IF_SET)
    """Begin a new promotion log with this bundle, judged by the floors only, because the log or the champion is
    lost. The reason, in words: it is recorded in the log."""
    tracking: str | None = field(default=None, metadata=NOT_IDENTITY)
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    gate: GateConfig = field(default_factory=GateConfig)
    """The checks that a bundle has to pass to become champion."""
    require_promoted: bool = field(default=False, metadata=NOT_IDENTITY)
    """End with exit code 3 if the gate refuses the bundle; by default a refusal ends with 0."""

    def __post_init__(self) -> None:
        if self.begin_anew is not None:
            _check_reason("begin_anew", self.begin_anew)


@configuration()
class RollbackConfig:
    """Return to an earlier champion by a new entry of the promotion log. No scores are needed."""

    model: str
    """Name of the registered model."""
    out: str = field(metadata=NOT_IDENTITY)
    """URI that receives decision.json."""
    reason: str = field(metadata=NOT_IDENTITY)
    """Why, in words: it is recorded in the log."""
    to: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Version of the earlier champion; by default the champion before the current one."""
    bundle: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of the earlier champion's bundle, if it was moved."""
    tracking: str | None = field(default=None, metadata=NOT_IDENTITY)
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        _check_reason("reason", self.reason)


@configuration()
class SignConfig:
    """Vouch for a promotion log by an entry that is signed with LOOKALIKE_SIGNING_KEY. The champion stays."""

    model: str
    """Name of the registered model."""
    reason: str
    """Why, in words: it is recorded in the log."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        _check_reason("reason", self.reason)


@configuration()
class HistoryConfig:
    """Print the promotion log of a model: who was champion when, and why. Changes nothing."""

    model: str
    """Name of the registered model."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    json: bool = False
    """Print JSON."""


@configuration()
class ExplainConfig:
    """Print why a version was promoted or refused: checks, values, judge, suite, cases. Changes nothing."""

    model: str
    """Name of the registered model."""
    version: Count
    """Its version, as `run` has printed it."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    json: bool = False
    """Print JSON."""


def _check_reason(name: str, reason: str) -> None:
    """Raise ConfigError unless ``reason`` is one line of words that a terminal shows as they are."""
    if not reason.strip() or not reason.isprintable() or len(reason) > _LONGEST:
        raise ConfigError(
            f"{name} has to be a reason in words, on one line of up to {_LONGEST} characters",
            value=reason[:100],
            fix=f"write --{name.replace('_', '-')} 'the log was lost with its disk'",
        )
