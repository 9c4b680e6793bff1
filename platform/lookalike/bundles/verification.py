"""Verify the bundle in a local folder, and find the folders that its parts are loaded from."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lookalike.bundles.digests import file_sha256s
from lookalike.bundles.manifest import (
    ADAPTER,
    MANIFEST,
    bundle_sha256,
    check_components,
    files_in,
    is_model_file,
    preset_of,
    read_manifest,
)
from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError
from lookalike.models.components import REPAIR


def verify(bundle_dir: Path, where: str | None = None) -> dict[str, Any]:
    """Compare every file of a bundle in a local folder with its manifest, which is returned.

    Files that were verified before and have not changed are not read again (:mod:`lookalike.bundles.digests`). Hidden
    files (``.name``) are ignored: no library loads them as part of a model. Raises InputError, which names the first
    file that is missing, changed or not listed, and ``where``: the location of the bundle, if the folder is a copy.
    """
    manifest = read_manifest(bundle_dir)
    listed = manifest["components"]
    where = where or str(bundle_dir)
    check_listed(listed, set(files_in(bundle_dir)), where)
    check_contents(listed, file_sha256s(bundle_dir, listed), lambda name: (bundle_dir / name).read_bytes(), where)
    return manifest


def check_listed(listed: Iterable[str], existing: set[str], where: str) -> None:
    """Raise InputError unless ``existing`` files are those that the manifest of the bundle at ``where`` lists."""
    if missing := sorted(name for name in listed if name not in existing):
        raise InputError(
            f"incomplete bundle: {missing[0]} is missing ({len(missing)} missing in total)", value=where, fix=REPAIR
        )
    if foreign := sorted(name for name in existing - set(listed) if is_model_file(name)):
        raise InputError(
            f"the bundle holds {foreign[0]}, which its manifest does not list ({len(foreign)} such files)",
            value=where,
            fix=f"remove it, or {REPAIR}",
        )


def check_contents(
    listed: Mapping[str, str], actual: Mapping[str, str], read: Callable[[str], bytes], where: str
) -> None:
    """Raise InputError unless the bundle at ``where`` has the ``listed`` SHA-256s, and its indices name listed files.

    ``actual`` are the SHA-256s of the same files; ``read`` reads one of them.
    """
    if changed := sorted(name for name, sha256 in listed.items() if actual[name] != sha256):
        name = changed[0]
        raise InputError(
            f"damaged bundle: {name} has changed ({len(changed)} files changed in total): its SHA-256 is"
            f" {actual[name]}, the manifest lists {listed[name]}",
            value=where,
            fix=REPAIR,
        )
    for name in listed:
        folder, _, file_name = name.rpartition("/")
        if ".index." not in file_name or not name.endswith(".json"):
            continue
        weights = parse_object(read(name), f"{where}/{name}", "weight_map", fix=REPAIR)["weight_map"]
        with decoding("an index of weight files", f"{where}/{name}", fix=REPAIR):
            named = {f"{folder}/{file}".removeprefix("/") for file in weights.values()}
        if foreign := sorted(named - listed.keys()):
            raise InputError(
                f"{name} names the weight file {foreign[0]}, which the bundle's manifest does not list",
                value=where,
                fix=REPAIR,
            )


def open_bundle(bundle_dir: Path, base_dir: Path | None = None) -> tuple[Path, Path | None]:
    """Verify a bundle in a local folder, and the base in ``base_dir`` that a personal bundle needs.

    Returns the folder of the five components (the base's for a personal bundle), and that of the peft adapter, if there
    is one. Raises InputError if a bundle is incomplete or damaged, or the base is missing or has another identity.
    """
    manifest = verify(bundle_dir)
    preset_of(manifest, str(bundle_dir / MANIFEST))  # checks it
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
    elif base_dir is not None:
        what = "a whole bundle takes no base: it holds all components"
        raise InputError(what, value=str(base_dir), fix="leave out the base, or pass the personal bundle's folder")
    has_adapter = any(name.startswith(f"{ADAPTER}/") for name in manifest["components"])
    return components, bundle_dir / ADAPTER if has_adapter else None
