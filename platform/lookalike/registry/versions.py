"""Versions of models in MLflow's registry: what a version points at, and how a model's name is resolved.

Weights stay in the store; MLflow gets their URI and their hash. Tags of a version: ``bundle_uri``, ``bundle_sha256``,
``scores_uri``, ``parent`` (hash of the bundle that it was trained from, or empty).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lookalike.errors import ConfigError, InputError
from lookalike.models.bundle import MANIFEST, bundle_sha256
from lookalike.registry.names import CHAMPION, validate_model_name
from lookalike.registry.promotions import LOG_TAG, PromotionLog
from lookalike.storage import open_store
from lookalike.tracking import tracking_uri
from lookalike.tracking.connection import connect, is_missing, is_taken, mlflow_errors

_MODEL_URI = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class ModelReference:
    """A model that can be loaded."""

    bundle_uri: str
    """Where the bundle is."""
    bundle_sha256: str
    """Its identity (see :func:`lookalike.models.bundle.bundle_sha256`)."""
    name: str | None = None
    """The registered model; None for a bundle that was named by its URI."""
    version: int | None = None
    """The version of it."""
    scores_uri: str | None = None
    """Where the scores are that it was judged by."""
    parent: str | None = None
    """Hash of the bundle that it was trained from."""

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}" if self.name else self.bundle_uri


def resolve(model: str, tracking: str | None = None) -> ModelReference:
    """Find what ``model`` names: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or a bundle's URI.

    The champion is the one that the promotion log names; where MLflow's alias lags behind it, this repairs the alias.

    Raises:
        InputError: no such model, alias, version or bundle; or the bundle is not the one that was registered.
        UnreachableError: MLflow or the store does not answer.
    """
    if not model.startswith("models:"):
        return ModelReference(bundle_uri=model, bundle_sha256=identify(model))
    match = _MODEL_URI.fullmatch(model)
    if match is None:
        raise ConfigError("not a model's URI", value=model, fix="write models:/NAME@champion or models:/NAME/3")
    uri = tracking_uri(tracking)
    reference = Registry(uri).find(validate_model_name(match["name"]), alias=match["alias"], version=match["version"])
    if (found := identify(reference.bundle_uri)) != reference.bundle_sha256:
        raise InputError(
            f"the bundle of {reference} is not the one that was registered",
            value=f"{reference.bundle_uri}: {found}, registered {reference.bundle_sha256}",
            fix="restore the bundle, or promote the new one",
        )
    return reference


def identify(bundle_uri: str) -> str:
    """The hash of the bundle at ``bundle_uri``; InputError where there is none."""
    data = open_store(bundle_uri).read(MANIFEST)
    try:
        return bundle_sha256(json.loads(data))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"no bundle: {error!r}", value=bundle_uri, fix="name a finished bundle") from error


class Registry:
    """MLflow's model registry at ``uri``."""

    def __init__(self, uri: str) -> None:
        self.uri, self._client = uri, connect(uri)

    def find(self, name: str, *, alias: str | None = None, version: str | int | None = None) -> ModelReference:
        """One version of ``name``, by alias or number."""
        if alias == CHAMPION:
            reference = self.champion(name)
            if reference is None:
                raise InputError(f"{name} has no champion", value=self.uri, fix="promote a version of it first")
            return reference
        if version is None:
            version = self._alias(name, str(alias))
        if version is None:
            raise InputError(f"{name} has no alias {alias!r}", value=self.uri, fix="check the model's name and alias")
        with mlflow_errors(self.uri):
            return _reference(self._client.get_model_version(name, str(version)))

    def champion(self, name: str) -> ModelReference | None:
        """The current champion by the promotion log, whose projection is the alias; None where there is none."""
        log = self.promotion_log(name)
        version = self._alias(name, CHAMPION) if log is None else self.project(name, log)
        return None if version is None else self.find(name, version=version)

    def project(self, name: str, log: PromotionLog) -> int | None:
        """Make the alias say what the log says. Returns the champion's version."""
        shown = self._alias(name, CHAMPION)
        while (last := log.last()) is not None and last.version != shown:
            with mlflow_errors(self.uri):
                self._client.set_registered_model_alias(name, CHAMPION, str(last.version))
            shown = last.version  # read the log again: a promotion may have come in between
        return shown

    def promotion_log(self, name: str) -> PromotionLog | None:
        """The log that was named when the model was made; None for a model that is not there or has no log."""
        tags = self._tags(name)
        return PromotionLog(open_store(tags[LOG_TAG]), name) if tags and LOG_TAG in tags else None

    def ensure_model(self, name: str, log_uri: str) -> PromotionLog:
        """Make the registered model ``name`` where it is missing, and return its promotion log.

        The first caller's ``log_uri`` is the log for good; a later one has to name the same, or None of its own.
        """
        from mlflow.exceptions import MlflowException

        validate_model_name(name)
        with mlflow_errors(self.uri):
            try:
                self._client.create_registered_model(name, tags={LOG_TAG: log_uri})
            except MlflowException as error:
                if not is_taken(error):
                    raise
        log = self.promotion_log(name)
        if log is None:
            raise InputError(
                f"the registered model {name} has no tag {LOG_TAG!r}", value=self.uri, fix="set it to the log's URI"
            )
        return log

    def register(self, name: str, tags: Mapping[str, str], run_id: str | None = None) -> ModelReference:
        """A version of ``name`` with these tags; the one that has this bundle already, if there is one."""
        with mlflow_errors(self.uri):
            for version in self._client.search_model_versions(f"name='{name}'"):
                if all(version.tags.get(key) == tags[key] for key in ("bundle_uri", "bundle_sha256")):
                    return _reference(version)
            # MLflow's server takes no local path as a source, so the source is the content; the tag says where it is.
            source = f"bundle://sha256/{tags['bundle_sha256']}"
            return _reference(self._client.create_model_version(name, source, run_id=run_id, tags=dict(tags)))

    def tag(self, version: ModelReference, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with mlflow_errors(self.uri):
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, str(version.version), key, value)

    def _alias(self, name: str, alias: str) -> int | None:
        from mlflow.exceptions import MlflowException

        with mlflow_errors(self.uri):
            try:
                return int(self._client.get_model_version_by_alias(name, alias).version)
            except MlflowException as error:
                # An alias that is missing is an invalid parameter to MLflow, a model that is missing does not exist.
                if is_missing(error) or error.error_code == "INVALID_PARAMETER_VALUE":
                    return None
                raise

    def _tags(self, name: str) -> dict[str, str] | None:
        from mlflow.exceptions import MlflowException

        with mlflow_errors(self.uri):
            try:
                return dict(self._client.get_registered_model(name).tags)
            except MlflowException as error:
                if is_missing(error):
                    return None
                raise


def _reference(version: Any) -> ModelReference:
    tags = version.tags
    if "bundle_uri" not in tags or "bundle_sha256" not in tags:
        raise InputError(
            "this model version points at no bundle",
            value=f"models:/{version.name}/{version.version}",
            fix="promote it",
        )
    return ModelReference(
        bundle_uri=tags["bundle_uri"],
        bundle_sha256=tags["bundle_sha256"],
        name=version.name,
        version=int(version.version),
        scores_uri=tags.get("scores_uri"),
        parent=tags.get("parent") or None,
    )
