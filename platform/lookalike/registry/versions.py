"""Versions of models in MLflow's registry, and the bundles that they refer to.

Weights stay in the store; MLflow gets their hash, which is the version's source and cannot be changed, and tags:
``bundle_uri``, ``bundle_sha256``, ``manifest_sha256`` (of the bytes of ``bundle.json``, which binds its base's place
too), ``scores_uri``, ``parent`` (hash of the bundle that it was trained from, or empty).
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lookalike.bundles.manifest import MANIFEST, BundleReference, bundle_sha256, parse_manifest
from lookalike.errors import ConflictError, InputError, RefusedError
from lookalike.registry.names import validate_model_name
from lookalike.registry.promotion_log import LOG_TAG, PromotionLog
from lookalike.storage import open_store
from lookalike.tracking.connection import connect, is_denied, is_missing, is_taken, mlflow_errors

DECISION_TAG = "decision_uri"  # of a version: the record of its newest decision
_SOURCE = "bundle://sha256/"
_TRIAL = "wanted_number"  # tag of a version while it is not known whether it got the number that it was made for


@dataclass(frozen=True)
class ModelReference:
    """Reference to a bundle, by its URI or as a version of a registered model."""

    bundle: BundleReference
    """Location and identity of its bundle, whose manifest has not been read."""
    name: str | None = None
    """The registered model; None for a bundle that was named by its URI."""
    version: int | None = None
    """The version of it."""
    scores_uri: str | None = None
    """URI of the scores that it was judged by."""
    parent: str | None = None
    """Hash of the bundle that it was trained from."""
    manifest_sha256: str | None = None
    """Hash of the bytes of its ``bundle.json``; None for a version of an earlier version of this software."""
    decision_uri: str | None = None
    """URI of the record of the gate's decision; None for a version of an earlier version of this software."""
    refused: bool = False
    """Whether the gate refused it, and has not let it pass since."""

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}" if self.name else self.bundle_uri

    @property
    def bundle_uri(self) -> str:
        """Location of the bundle."""
        return self.bundle.uri

    @property
    def bundle_sha256(self) -> str:
        """Identity of the bundle."""
        return self.bundle.sha256


def identify(bundle_uri: str) -> str:
    """The hash of the bundle at ``bundle_uri``. Raises InputError if there is no bundle."""
    store = open_store(bundle_uri)
    return bundle_sha256(parse_manifest(store.read(MANIFEST), store.uri_of(MANIFEST)))


def manifest_sha256(bundle_uri: str) -> str:
    """The hash of the bytes of a bundle's ``bundle.json``."""
    return hashlib.sha256(open_store(bundle_uri).read(MANIFEST)).hexdigest()


class Registry:
    """MLflow's model registry at ``uri``."""

    def __init__(self, uri: str) -> None:
        self.uri, self._client = uri, connect(uri)

    def version(self, name: str, version: str | int) -> ModelReference:
        """Get one version of ``name`` by its number."""
        with self._needing("READ", name):
            found = self._client.get_model_version(name, str(version))
        return _reference(found)

    def versions_of_bundle(self, name: str, sha256: str) -> list[ModelReference]:
        """The versions of ``name`` that were registered with this bundle, oldest first."""
        matches = [version for version in self._versions(name) if _content(version) == sha256]
        return [_reference(version) for version in sorted(matches, key=lambda version: int(version.version))]

    def was_promoted(self, name: str) -> bool:
        """Whether a version has the tag of a promotion."""
        return any(version.tags.get("gate") == "promoted" for version in self._versions(name))

    def promotion_log(self, name: str) -> PromotionLog | None:
        """The log that the model's tag names; None for a model that is not registered or has no such tag."""
        tags = self.model_tags(name)
        return PromotionLog(open_store(tags[LOG_TAG]), name) if tags and LOG_TAG in tags else None

    def ensure_model(self, name: str, log_uri: str | None) -> None:
        """Create the registered model ``name`` if it is missing. The first caller's ``log_uri`` stays its log."""
        validate_model_name(name)
        with self._needing("CREATE", name):
            try:
                self._client.create_registered_model(name, tags={} if log_uri is None else {LOG_TAG: log_uri})
            except Exception as error:
                if not is_taken(error):
                    raise

    def register(self, name: str, tags: Mapping[str, str]) -> ModelReference:
        """Create a version of ``name`` with these tags, or return the existing one of this bundle."""
        for version in self._versions(name):
            same = _content(version) == tags["bundle_sha256"] and version.tags.get("bundle_uri") == tags["bundle_uri"]
            if same and version.tags.get("bundle_sha256") == tags["bundle_sha256"]:
                if "manifest_sha256" not in version.tags:  # of an earlier version of this software
                    self.tag(_reference(version), {"manifest_sha256": tags["manifest_sha256"]})
                return _reference(version)
        return self.create(name, tags)

    def create(self, name: str, tags: Mapping[str, str]) -> ModelReference:
        """Create a version of ``name`` with these tags, also if the registry has one of this bundle."""
        with self._needing("EDIT", name):
            # MLflow's server takes no local path as a source, so the source is the content, and a tag has the place.
            source = f"{_SOURCE}{tags['bundle_sha256']}"
            made = self._client.create_model_version(name, source, tags=dict(tags))
        return _reference(made)

    def contents(self, name: str) -> dict[int, str | None]:
        """The hash of the bundle of each version of ``name``, by its number; None for a version without a bundle."""
        return {
            int(version.version): _content(version)
            for version in self._versions(name)
            if version.tags.get(_TRIAL, str(version.version)) == str(version.version)
        }

    def create_at(self, name: str, number: int, tags: Mapping[str, str]) -> None:
        """Create the version ``number`` of ``name``. MLflow counts deleted versions, so that smaller numbers which no
        version has are used up by versions that are deleted at once. After one that was killed, call
        :meth:`finish_trials` first.

        Raises ConflictError if ``number`` was given to another version, by another process.
        """
        while True:
            made = int(self.create(name, {**tags, _TRIAL: str(number)}).version or 0)
            self._finish_trial(name, made, str(number))
            if made >= number:
                break
        if made > number:
            what = f"another process registers versions of {name}: number {number} was taken"
            raise ConflictError(what, value=self.uri, fix="run the same command again when that process has ended")

    def finish_trials(self, name: str) -> None:
        """Finish calls of :meth:`create_at` that were killed."""
        for version in [item for item in self._versions(name) if _TRIAL in item.tags]:
            self._finish_trial(name, int(version.version), version.tags[_TRIAL])

    def _finish_trial(self, name: str, made: int, wanted: str) -> None:
        """Delete a version that did not get the number that it was made for, or the mark of one that did."""
        with self._needing("EDIT", name):
            if wanted == str(made):
                self._client.delete_model_version_tag(name, str(made), _TRIAL)
            else:
                self._client.delete_model_version(name, str(made))

    def versions_everywhere(self, sha256: str) -> Iterator[ModelReference]:
        """Versions of any model that were registered with this bundle."""
        for version in self._search(f"source_path='{_SOURCE}{sha256}'"):
            yield _reference(version)

    def tag(self, version: ModelReference, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._needing("EDIT", str(version.name)):
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, str(version.version), key, value)

    def withdraw_refusal(self, version: ModelReference) -> None:
        """Record that ``version`` passed the gate, before the promotion log does."""
        if version.refused:
            self.tag(version, {"gate": "passed"})

    def tag_model(self, name: str, key: str, value: str) -> None:
        """Set a tag of the registered model."""
        with self._needing("EDIT", name):
            self._client.set_registered_model_tag(name, key, value)

    def model_tags(self, name: str) -> dict[str, str] | None:
        """Tags of the registered model; None if there is no such model.

        Raises:
            RefusedError: the user may not read it. MLflow also answers so for a model that does not exist, if the user
                has no default permission.
        """
        with self._needing("READ", name):
            try:
                return dict(self._client.get_registered_model(name).tags)
            except Exception as error:
                if is_missing(error):
                    return None
                raise

    def readable_tags(self, name: str) -> dict[str, str]:
        """Tags of the registered model; none if there is no such model, or if the user may not read it.

        For callers that create the model next: only then MLflow tells which of the two it is.
        """
        try:
            return self.model_tags(name) or {}
        except RefusedError:
            return {}

    def alias(self, name: str, alias: str) -> int | None:
        """The version that an alias names; None if there is no such alias."""
        with self._needing("READ", name):
            try:
                return int(self._client.get_model_version_by_alias(name, alias).version)
            except Exception as error:
                # An alias that is missing is an invalid parameter to MLflow, a model that is missing does not exist.
                if is_missing(error) or getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                    return None
                raise

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Make the alias name ``version``."""
        with self._needing("EDIT", name):
            self._client.set_registered_model_alias(name, alias, str(version))

    @contextmanager
    def _needing(self, permission: str, name: str) -> Iterator[None]:
        """Errors of MLflow as ours; a refusal names the ``permission`` of the model ``name`` that the user lacks."""
        with mlflow_errors(self.uri):
            try:
                yield
            except Exception as error:
                if not is_denied(error):
                    raise
                what = f"MLflow does not let this user {permission.lower()} the registered model {name}"
                fix = f"ask for the permission {permission} on {name}, or set another MLFLOW_TRACKING_USERNAME"
                if permission == "READ":
                    what += ", or there is no such model"
                elif permission == "CREATE":
                    fix = "ask its administrator to let this user create registered models"
                raise RefusedError(what, value=self.uri, fix=fix) from error

    def _versions(self, name: str) -> Iterator[Any]:
        return self._search(f"name='{name}'")

    def _search(self, criterion: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            with mlflow_errors(self.uri):
                page = self._client.search_model_versions(criterion, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _content(version: Any) -> str | None:
    """The hash that a version was registered with: its source, which no tag can change."""
    source = str(version.source or "")
    return source.removeprefix(_SOURCE) if source.startswith(_SOURCE) else version.tags.get("bundle_sha256")


def _reference(version: Any) -> ModelReference:
    tags, content = version.tags, _content(version)
    where = f"models:/{version.name}/{version.version}"
    if "bundle_uri" not in tags or content is None:
        raise InputError("this model version does not name a bundle", value=where, fix="promote its bundle again")
    if tags.get("bundle_sha256", content) != content:
        raise InputError(
            "the tag bundle_sha256 of this model version was changed: it is not the hash that was registered",
            value=f"{where}: {tags['bundle_sha256']}",
            fix=f"set the tag to {content}",
        )
    return ModelReference(
        BundleReference(tags["bundle_uri"], content),
        name=version.name,
        version=int(version.version),
        scores_uri=tags.get("scores_uri"),
        parent=tags.get("parent") or None,
        manifest_sha256=tags.get("manifest_sha256"),
        decision_uri=tags.get(DECISION_TAG),
        refused=tags.get("gate") == "refused",
    )
