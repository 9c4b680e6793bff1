"""Bundles by URI, opened where a worker can read them; a personal bundle brings its base along."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.bundles.transfer import local_bundle
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import open_store

if TYPE_CHECKING:
    from lookalike.bundles.manifest import OpenBundle
    from lookalike.diffusion.pipeline import SubjectPipeline


@dataclass(frozen=True)
class BundleLocation:
    """A bundle that is there, pinned by its content."""

    uri: str
    """Where it is."""
    sha256: str
    """Its identity."""
    base_uri: str | None
    """Where the base of a personal bundle is."""
    max_references: int
    """How many reference images its model reads."""
    stages: str
    """By which it draws where nobody says otherwise."""

    def open(self) -> "OpenBundle":
        """Its folders on this machine. Raises InputError for a bundle that is damaged or was replaced since it was
        found, or for another base than the adapter was trained on."""
        from lookalike.bundles.manifest import open_bundle

        return open_bundle(self._folder, self._base_folder)

    def load(self, device: str) -> "SubjectPipeline":
        """The pipeline, without progress bars."""
        import diffusers
        import transformers

        from lookalike.bundles.contents import REPAIR
        from lookalike.diffusion.pipeline import SubjectPipeline

        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        with decoding("a bundle whose parts load", self.uri, fix=REPAIR):
            pipe = SubjectPipeline.from_pretrained(self._folder, base=self._base_folder)
        pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @property
    def _folder(self) -> Path:
        return local_bundle(self.uri, self.sha256)

    @property
    def _base_folder(self) -> Path | None:
        return local_bundle(self.base_uri) if self.base_uri else None


def locate_bundle(
    uri: str, sha256: str | None = None, *, base_uri: str | None = None, base_hint: str | None = None
) -> BundleLocation:
    """Find the bundle at ``uri`` by its ``bundle.json``, without reading any weights.

    The base of a personal bundle is found by its hash: at ``base_uri``, if that is given; else at ``base_hint``, if it
    lies there; else at its place when the adapter was trained.

    Raises:
        InputError: no finished bundle there, or not the one that ``sha256`` names; or the base is not there.
    """
    from lookalike.bundles.manifest import MANIFEST
    from lookalike.models.presets import preset_from_dict

    store = open_store(uri)
    manifest, found = _read(uri, "name the bundle_uri of a run's result.json, or the place that it was moved to")
    if sha256 is not None and found != sha256:
        raise InputError(
            f"the bundle here is {found[:12]}, and the registered one is {sha256[:12]}",
            value=store.uri,
            fix="restore it, or name the place of the registered one with --bundle",
        )
    base = manifest["base"]
    where = None if base is None else _base(base["uri"], base["sha256"], base_uri, base_hint)
    preset = preset_from_dict(manifest["preset"], origin=store.uri_of(MANIFEST))
    return BundleLocation(store.uri, found, where, preset.references.max_references, preset.stages)


def _base(recorded: str, sha256: str, named: str | None, hint: str | None) -> str:
    """The first of the places at which the base with this hash lies."""
    found: dict[str, str] = {}
    for place in [named] if named else [hint, recorded]:
        if place is None:
            continue
        try:
            found[place] = _read(place, "")[1]
        except InputError:
            continue
        if found[place] == sha256:
            return open_store(place).uri
    what = f"another bundle ({found[named or recorded][:12]})" if (named or recorded) in found else "no bundle"
    raise InputError(
        f"the personal bundle sits on the base {sha256[:12]}, and there is {what}",
        value=named or recorded,
        fix="name the place of that base with --base",
    )


def _read(uri: str, fix: str) -> tuple[dict[str, Any], str]:
    """The manifest of the bundle at ``uri``, and its identity."""
    from lookalike.bundles.manifest import MANIFEST, bundle_sha256, parse_manifest

    store = open_store(uri)
    if not store.exists(MANIFEST):
        raise InputError("no finished bundle here", value=store.uri, fix=fix or "check the location")
    manifest = parse_manifest(store.read(MANIFEST), store.uri_of(MANIFEST))
    return manifest, bundle_sha256(manifest)
