"""Resolve a model's name to a bundle that can be loaded."""

import re
from dataclasses import replace

from lookalike.bundles.manifest import MANIFEST, BundleReference
from lookalike.errors import ConfigError, InputError
from lookalike.registry.champions import champion
from lookalike.registry.names import CHAMPION, validate_model_name
from lookalike.registry.versions import ModelReference, Registry, identify, manifest_sha256
from lookalike.tracking import tracking_uri

_MODEL_URI = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")


def resolve(model: str, tracking: str | None = None, bundle_uri: str | None = None) -> ModelReference:
    """Find what ``model`` names: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or a bundle's URI.

    The champion is the one that the promotion log names; if MLflow's alias lags behind it, this repairs the alias.
    ``bundle_uri`` is the bundle's current place, if it was moved since it was registered: its content is checked.

    Raises:
        InputError: no such model, alias, version or bundle; the bundle is not the one that was registered; or the
            registry and the promotion log contradict each other.
        UnreachableError: MLflow or the store does not answer.
    """
    if not model.startswith("models:"):
        return named(bundle_uri or model)
    reference = named(model, tracking)
    where = bundle_uri or reference.bundle_uri
    try:
        found = identify(where)
    except InputError as error:
        what = f"the bundle of {reference} is not at its place: {error.what}"
        raise InputError(what, value=where, fix=_ANOTHER_PLACE) from error
    if found != reference.bundle_sha256:
        raise InputError(
            f"the bundle of {reference} is not the one that was registered",
            value=f"{where}: {found}, registered {reference.bundle_sha256}",
            fix=_ANOTHER_PLACE,
        )
    if reference.manifest_sha256 not in (None, manifest := manifest_sha256(where)):
        raise InputError(
            f"{MANIFEST} of {reference} was edited since it was registered: its SHA-256 is {manifest}, registered"
            f" {reference.manifest_sha256}",
            value=where,
            fix=_ANOTHER_PLACE,
        )
    return replace(reference, bundle=BundleReference(where, reference.bundle_sha256))


def named(model: str, tracking: str | None = None) -> ModelReference:
    """Find what ``model`` names as :func:`resolve` does, but do not check that a registered bundle is at its place."""
    if not model.startswith("models:"):
        return ModelReference(BundleReference(model, identify(model)))
    match = _MODEL_URI.fullmatch(model)
    if match is None:
        raise ConfigError("not a valid model URI", value=model, fix="write models:/NAME@champion or models:/NAME/3")
    return _find(Registry(tracking_uri(tracking)), validate_model_name(match["name"]), match["alias"], match["version"])


_ANOTHER_PLACE = (
    "restore the bundle; or, if it was moved, name its place (--bundle; --base for jobs/finetune.py), and register it "
    "there with jobs/promote.py run --bundle"
)


def _find(registry: Registry, name: str, alias: str | None, version: str | None) -> ModelReference:
    if alias == CHAMPION:
        reference = champion(registry, name)
        if reference is None:
            raise InputError(
                f"{name} has no champion", value=registry.uri, fix="promote a version of it first (jobs/promote.py)"
            )
        return reference
    number: str | int | None = version if version is not None else registry.alias(name, str(alias))
    if number is None:
        raise InputError(f"{name} has no alias {alias!r}", value=registry.uri, fix="check the model's name and alias")
    return registry.version(name, number)
