"""Bundles by URI, opened where a worker can read them; a personal bundle brings its base along."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.errors import InputError
from lookalike.storage import open_store, read_object
from lookalike.training.bundles import local_bundle

if TYPE_CHECKING:
    from lookalike.diffusion.pipeline import SubjectPipeline
    from lookalike.models.bundle import OpenBundle


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
        """Its folders on this machine. Raises InputError for another base than the adapter was trained on."""
        from lookalike.models.bundle import open_bundle

        return open_bundle(self._folder, self._base_folder)

    def load(self, device: str) -> "SubjectPipeline":
        """The pipeline, without progress bars."""
        import diffusers
        import transformers

        from lookalike.diffusion.pipeline import SubjectPipeline

        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        pipe = SubjectPipeline.from_pretrained(self._folder, base=self._base_folder)
        pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @property
    def _folder(self) -> Path:
        return local_bundle(self.uri)

    @property
    def _base_folder(self) -> Path | None:
        return local_bundle(self.base_uri) if self.base_uri else None


def locate_bundle(uri: str, sha256: str | None = None) -> BundleLocation:
    """Find the bundle at ``uri`` by its ``bundle.json``, without reading any weights.

    Raises:
        InputError: no finished bundle there, or not the one that ``sha256`` names.
    """
    from lookalike.models.bundle import MANIFEST, bundle_sha256

    store = open_store(uri)
    if not store.exists(MANIFEST):
        raise InputError("no finished bundle here", value=store.uri, fix="name the bundle_uri of a run's result.json")
    manifest = read_object(store, MANIFEST, "base", "preset")
    found = bundle_sha256(manifest)
    if sha256 is not None and found != sha256:
        raise InputError(
            f"the bundle is {found[:12]}, the registry says {sha256[:12]}", value=store.uri, fix="register it again"
        )
    base = manifest["base"]
    preset = manifest["preset"]
    references = int(preset["references"]["max_references"])
    return BundleLocation(store.uri, found, base["uri"] if base else None, references, preset.get("stages", "paper"))
