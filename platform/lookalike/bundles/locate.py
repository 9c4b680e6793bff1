"""Find a bundle, and the base of a personal one, by their manifests alone."""

from contextlib import suppress
from typing import Any

from lookalike.bundles.manifest import MANIFEST, BundleReference, bundle_sha256, parse_manifest, preset_of
from lookalike.errors import InputError
from lookalike.storage import open_store


def locate_bundle(
    uri: str, sha256: str | None = None, *, base_uri: str | None = None, base_hint: str | None = None
) -> BundleReference:
    """Read the manifest of the bundle at ``uri`` and find its base; no weights are read.

    The base of a personal bundle is identified by its hash. It is looked for at ``base_uri`` only, if that is given;
    otherwise at ``base_hint``, and then at the location that was recorded when the adapter was trained.
    Raises InputError for no finished bundle at ``uri``, one with another identity than ``sha256``, or no base.
    """
    store = open_store(uri)
    manifest, actual = _read(uri)
    if sha256 is not None and actual != sha256:
        raise InputError(
            f"the bundle here is {actual[:12]}, and the registered one is {sha256[:12]}",
            value=store.uri,
            fix="restore it, or pass the location of the registered one with --bundle",
        )
    base = manifest["base"] and _find_base(manifest["base"], base_uri, base_hint)
    return BundleReference(store.uri, actual, base, preset_of(manifest, store.uri_of(MANIFEST)))


def _find_base(recorded: dict[str, str], chosen: str | None, hint: str | None) -> BundleReference:
    actual: dict[str, str] = {}
    for place in filter(None, [chosen] if chosen else [hint, recorded["uri"]]):
        with suppress(InputError):
            actual[place] = _read(place)[1]
        if actual.get(place) == recorded["sha256"]:
            return BundleReference(open_store(place).uri, recorded["sha256"])
    expected = chosen or recorded["uri"]
    what = f"another bundle ({actual[expected][:12]})" if expected in actual else "no bundle"
    raise InputError(
        f"the personal bundle needs the base {recorded['sha256'][:12]}, and there is {what} at its location",
        value=expected,
        fix="pass the location of that base with --base",
    )


def _read(uri: str) -> tuple[dict[str, Any], str]:
    """Read the manifest of the bundle at ``uri``; returns it with the bundle's identity."""
    store = open_store(uri)
    if not store.exists(MANIFEST):
        raise InputError(
            "there is no finished bundle here",
            value=store.uri,
            fix="pass the bundle_uri of a run's result.json, or the location that the bundle was moved to",
        )
    manifest = parse_manifest(store.read(MANIFEST), store.uri_of(MANIFEST))
    return manifest, bundle_sha256(manifest)
