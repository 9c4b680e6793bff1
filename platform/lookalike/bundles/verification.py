"""Verify the bundle in a local folder, and find the folders that its parts are loaded from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.bundles.digests import file_sha256s
from lookalike.bundles.files import MANIFEST, check_hashes, check_index, check_listed, files_in, is_index
from lookalike.bundles.manifest import ADAPTER, bundle_sha256, check_components, preset_of, read_manifest
from lookalike.errors import InputError
from lookalike.models.presets import Preset


@dataclass(frozen=True)
class OpenBundle:
    """Local folders of a verified bundle, its base included."""

    components: Path
    """Folder that holds the five components (the base's for a personal bundle)."""
    adapter: Path | None
    """Folder of the peft adapter, if the bundle has one."""
    preset: Preset
    """What the model was made from."""


def verify(bundle_dir: Path, where: str | None = None) -> dict[str, Any]:
    """Compare every file of a bundle in a local folder with its manifest, which is returned.

    Files that were verified before and have not changed are not read again (:mod:`lookalike.bundles.digests`). Hidden
    files (``.name``) are ignored: no library loads them as part of a model.

    Args:
        bundle_dir: the folder.
        where: location that errors name, if the folder is a copy.

    Raises:
        InputError: names the first file that is missing, changed, or not listed.
    """
    manifest = read_manifest(bundle_dir)
    listed = manifest["components"]
    where = where or str(bundle_dir)
    check_listed(listed, set(files_in(bundle_dir)), where)
    check_hashes(listed, file_sha256s(bundle_dir, listed), where)
    for name in filter(is_index, listed):
        check_index(name, (bundle_dir / name).read_bytes(), listed, where)
    return manifest


def open_bundle(bundle_dir: Path, base_dir: Path | None = None) -> OpenBundle:
    """Verify a bundle in a local folder, and the base in ``base_dir`` that a personal bundle needs.

    Raises:
        InputError: not a bundle, incomplete, damaged, or the base is missing or has another identity.
    """
    manifest = verify(bundle_dir)
    base = manifest["base"]
    check_components(bundle_dir, personal=base is not None)
    components = bundle_dir
    if base is not None:
        if base_dir is None:
            raise InputError("a personal bundle needs its base", value=base["uri"], fix="pass the base's folder")
        open_bundle(base_dir)
        if (actual := bundle_sha256(read_manifest(base_dir))) != base["sha256"]:
            raise InputError(
                f"the adapter was trained on the base {base['sha256'][:12]}, and this folder holds {actual[:12]}",
                value=str(base_dir),
                fix=f"use {base['uri']}",
            )
        components = base_dir
    has_adapter = any(name.startswith(f"{ADAPTER}/") for name in manifest["components"])
    preset = preset_of(manifest, str(bundle_dir / MANIFEST))
    return OpenBundle(components, bundle_dir / ADAPTER if has_adapter else None, preset)
