"""Rebuild the registered models of a lost MLflow from the promotion logs and decisions in the store."""

import logging
from collections.abc import Iterator
from dataclasses import field

from lookalike import registry
from lookalike.errors import ConfigError, InputError
from lookalike.registry.rebuild import ModelPlan, apply, compare, plan_models
from lookalike.registry.records import read_records
from lookalike.tracking import tracking_uri
from lookalike.values import configuration

log = logging.getLogger(__name__)


@configuration()
class RebuildConfig:
    """Rebuild the registered models of a lost MLflow from the store. Shows what it would do; --apply does it."""

    store: list[str] = field(default_factory=list)
    """URI whose promotion logs, decisions and bundles are read; may be repeated. It is listed as a whole, but files of
    other names are not opened."""
    log: list[str] = field(default_factory=list)
    """Prefix of promotion logs that lie elsewhere, or that count alone if there are several; may be repeated."""
    model: str | None = None
    """Name of the only model to rebuild; by default all that are found."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    apply: bool = False
    """Register what is missing. Without it nothing is changed."""
    json: bool = False
    """Print JSON, one line for each model."""

    def __post_init__(self) -> None:
        if not self.store and not self.log:
            raise ConfigError("there is no place to rebuild from", fix="name one with --store, or --log")


def rebuild(config: RebuildConfig) -> Iterator[ModelPlan]:
    """Plan each model, and with ``config.apply`` register what MLflow lacks; yield each when it is done.

    The same configuration again completes what a killed one has left, and changes nothing otherwise.

    Raises:
        InputError: nothing is recorded about any model, or, at the end, models that could not be rebuilt.
        UnreachableError: MLflow or the store does not answer.
    """
    if config.model is not None:
        registry.validate_model_name(config.model)
    models = registry.Registry(tracking_uri(config.tracking))
    found = read_records(config.store, config.log, config.model)
    for uri, reason in found.passed_over:
        log.warning("%s is passed over: %s", uri, reason)
    if not found.models:
        fix = "check --store and --model; each promotion writes a decision.json, and a log"
        raise InputError("no promotion is recorded here", value=[*config.store, *config.log], fix=fix)
    failed = []
    for plan in plan_models(found):
        compare(models, plan)
        if config.apply and plan.problem is None:
            try:
                apply(models, plan)
            except InputError as error:
                plan.problem = str(error)
        if plan.problem is not None:
            failed.append(plan.name)
        yield plan
    if failed:
        raise InputError(f"{len(failed)} models were not rebuilt", value=failed[:10], fix="see the reasons above")


def describe(plan: ModelPlan) -> list[str]:
    """Lines for a terminal."""
    if plan.problem is not None:
        state = f"NOT REBUILT: {plan.problem}"
    elif plan.done:
        state = "agrees with the store"
    elif plan.missing:
        state = f"{len(plan.missing)} versions to register: {_ranges(plan.missing)}"
    else:
        state = "no version is missing"
    champion = "none" if plan.champion is None else str(plan.champion)
    lines = [f"{plan.name}: {len(plan.versions)} versions, champion {champion}; {state}"]
    lines += [f"     log {plan.log_uri}, newest entry {(plan.head or '').partition(':')[0]}"] if plan.log_uri else []
    return lines + [f"     {note}" for note in plan.notes]


def _ranges(numbers: list[int]) -> str:
    """``1-3, 5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
