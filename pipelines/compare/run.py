"""Run one comparison: find the evaluations, evaluate bundles, compare, and write the page."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lookalike import __version__
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import MANIFEST
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation import comparison
from lookalike.evaluation.comparison import Comparison, Evaluated
from lookalike.evaluation.measurements import MEASUREMENTS
from lookalike.evaluation.scores import SCORES, Scores
from lookalike.report.comparison import ComparisonPage, render_comparison
from lookalike.storage import Store, locate_object, open_store
from lookalike.storage.claim import read_result, run_once, write_result
from pipelines.compare.config import CompareConfig
from pipelines.compare.images import draw_examples
from pipelines.evaluate import EvaluateConfig, evaluate

log = logging.getLogger(__name__)

RESULT, PAGE, GRID = "compare.json", "compare.html", "compare.png"
_RESULT = {"names": list[str], "rows": list[dict[str, Any]], "notes": list[str], "lines": list[str]}
_IGNORED = ("bundle", "out", "base", "actors")  # of the settings of a finished evaluation
_COMMON = (SCORES, "scores", "bundle", "adapter", "evaluation", "")  # names that say nothing about a model


@dataclass(frozen=True)
class _Model:
    """A model of the comparison."""

    name: str
    place: Store
    """Where the evaluation is or will be."""
    sha256: str
    """Hash of scores.json, or of the bundle."""
    bundle: str | None = None
    """URI of a bundle that is evaluated first."""


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compare the models; returns the content of ``compare.json``, whose ``lines`` are for a terminal.

    Bundles are evaluated first, below ``config.out``; killed, the comparison resumes with the unfinished evaluation.

    Raises:
        InputError: a model is neither an evaluation nor a bundle, or two evaluations cannot be compared.
        ConfigError: no suite for a bundle, or a setting of its evaluation is not valid.
        ConflictError: ``config.out`` holds another comparison.
    """
    store = open_store(config.out)
    models = _find(config, store)
    settings = _evaluation_settings(config, models) if any(model.bundle for model in models) else {}
    for model in models:
        if model.bundle:
            _evaluation_of(config, model, settings)  # so that wrong settings fail before any work
    inputs = [f"{'bundle' if model.bundle else 'scores'}:{model.sha256}" for model in models]
    return run_once(
        store,
        RESULT,
        config,
        content={"inputs": inputs, "reference": config.reference, "shown_as": [model.name for model in models]},
        earlier=lambda run: read_result(store, RESULT, run, _RESULT)[0],
        work=lambda run: _compare(config, run, store, models, settings),
    )


def _compare(
    config: CompareConfig, run: str, store: Store, models: Sequence[_Model], settings: dict[str, Any]
) -> dict[str, Any]:
    for model in models:
        if model.bundle:
            log.info("evaluating %s", model.name)
            evaluate(_evaluation_of(config, model, settings))
    evaluations = [_read(model) for model in models]
    result = comparison.compare(evaluations, config.reference)
    grid, missing = draw_examples(evaluations, [model.place for model in models], config.reference)
    result = replace(result, notes=(*result.notes, *missing))
    if grid is not None:
        store.write(GRID, grid)
    page = ComparisonPage(result, tuple(each.scores for each in evaluations), grid, __version__)
    store.write(PAGE, render_comparison(page).encode())
    document = _document(result, evaluations)
    write_result(store, RESULT, document, run)
    return document


def _document(result: Comparison, evaluations: Sequence[Evaluated]) -> dict[str, Any]:
    models = [
        {
            "name": each.name,
            "bundle_sha256": each.scores.bundle.sha256,
            "measurements_sha256": hashlib.sha256(each.measurements).hexdigest(),
            "embedder": each.scores.embedder,
        }
        for each in evaluations
    ]
    suite = {"sha256": evaluations[0].scores.suite.sha256, "version": evaluations[0].scores.suite.version}
    return {"models": models, "suite": suite, **result.to_dict(), "lines": comparison.lines(result)}


def _find(config: CompareConfig, store: Store) -> list[_Model]:
    """Find each model; raises InputError for one that is neither an evaluation nor a bundle, or is given twice."""
    names = config.names or _names(config.models)
    models = [_model(name, uri, store) for name, uri in zip(names, config.models, strict=True)]
    for number, model in enumerate(models):
        twin = next((other for other in models[:number] if other.sha256 == model.sha256), None)
        if twin:
            raise InputError(
                f"{twin.name} and {model.name} are the same {'bundle' if model.bundle else 'evaluation'}",
                value=config.models[number],
                fix="name each model once",
            )
    return models


def _model(name: str, uri: str, out: Store) -> _Model:
    place, key = locate_object(uri) if uri.endswith(".json") else (open_store(uri), SCORES)
    if key == SCORES and place.exists(SCORES):
        return _Model(name, place, hashlib.sha256(place.read(SCORES)).hexdigest())
    if key == SCORES and place.exists(MANIFEST):
        bundle = locate_bundle(place.uri)
        return _Model(name, out.child(f"evaluations/{bundle.sha256[:16]}"), bundle.sha256, place.uri)
    raise InputError(
        f"there is neither a finished evaluation ({SCORES}) nor a finished bundle ({MANIFEST}) here",
        value=uri,
        fix="name the --out of jobs/evaluate.py run, or the bundle_uri of a training run's result.json",
    )


def _names(uris: Sequence[str]) -> list[str]:
    """A name for each model, from the last folder of its URI that says something; numbered if two are equal."""
    names: list[str] = []
    for uri in uris:
        parts = [part for part in uri.split("?")[0].split("/") if part not in _COMMON]
        name = parts[-1] if parts else "model"
        alike = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({alike + 1})" if alike else name)
    return names


def _evaluation_settings(config: CompareConfig, models: Sequence[_Model]) -> dict[str, Any]:
    """Settings of the evaluations of bundles: those given, and the others as in the first finished evaluation."""
    finished = next((model for model in models if not model.bundle), None)
    earlier = {} if finished is None else _scores(finished).config
    settings = {name: value for name, value in earlier.items() if name not in _IGNORED} | config.evaluation
    if "suite" not in settings:
        raise ConfigError(
            "bundles cannot be evaluated without a suite", value=config.models, fix="name one with --evaluation.suite"
        )
    return settings


def _evaluation_of(config: CompareConfig, model: _Model, settings: dict[str, Any]) -> EvaluateConfig:
    own = {"bundle": model.bundle, "out": model.place.uri, "actors": config.actors}
    try:
        return EvaluateConfig(**{**settings, **own})
    except TypeError as error:
        raise ConfigError(
            f"evaluation has an unknown setting: {error}",
            value=sorted(settings),
            fix="see jobs/evaluate.py run --help for the names of settings",
        ) from error


def _read(model: _Model) -> Evaluated:
    """Read an evaluation, with estimates computed again from its measurements."""
    scores, where = _scores(model), model.place.uri_of(MEASUREMENTS)
    if not model.place.exists(MEASUREMENTS):
        raise InputError(
            "the measurements of these scores are missing, and paired differences need them",
            value=where,
            fix="copy them beside scores.json, or evaluate the bundle again",
        )
    data = model.place.read(MEASUREMENTS)
    return Evaluated(model.name, scores.proven(data, where), data)


def _scores(model: _Model) -> Scores:
    return Scores.from_json(model.place.read(SCORES), model.place.uri_of(SCORES))
