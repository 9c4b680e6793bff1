"""The files of a bundle, held against what its manifest lists."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError

MANIFEST = "bundle.json"
REPAIR = "download or export the bundle again"
"""What a reader of a damaged bundle can do."""
_MOST_FILES = 100_000


def counts(name: str) -> bool:
    """Whether a file is a part of a model. Hidden files (``.name``) are other programs': no library loads them."""
    return not any(segment.startswith(".") for segment in name.split("/"))


def files_in(bundle_dir: Path) -> list[str]:
    """Names of everything below the folder that is not a folder, but for the manifest; linked folders are followed."""
    names: list[str] = []
    visited = set()
    for root, below, files in os.walk(bundle_dir, followlinks=True):
        folder = Path(root)
        visited.add(_inode(folder))
        for name in list(below):
            if _inode(folder / name) in visited:  # a link that leads back up
                below.remove(name)
                files.append(name)
        if len(names) + len(files) > _MOST_FILES:  # a link to a whole disk
            raise InputError(f"the bundle holds over {_MOST_FILES} files", value=str(bundle_dir), fix=REPAIR)
        names += [(folder / name).relative_to(bundle_dir).as_posix() for name in files]
    return sorted(name for name in names if name != MANIFEST)


def _inode(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:
        raise InputError(
            f"cannot read: {error.strerror or error}", value=str(folder), fix="check its permissions and disk"
        ) from error
    return found.st_dev, found.st_ino


def check_listed(listed: Iterable[str], there: set[str], where: str) -> None:
    """Raise InputError unless the files that are ``there`` are those that the manifest of ``where`` lists."""
    if missing := sorted(name for name in listed if name not in there):
        raise InputError(
            f"incomplete bundle: {missing[0]} is missing ({len(missing)} files are)", value=where, fix=REPAIR
        )
    if foreign := sorted(name for name in there - set(listed) if counts(name)):
        raise InputError(
            f"the bundle holds {foreign[0]}, which its manifest does not list ({len(foreign)} files)",
            value=where,
            fix=f"remove it, or {REPAIR}",
        )


def check_hashes(listed: Mapping[str, str], found: Mapping[str, str], where: str) -> None:
    """Raise InputError unless each file has the hash that the manifest of ``where`` lists."""
    changed = sorted(name for name, sha256 in listed.items() if found[name] != sha256)
    if changed:
        name = changed[0]
        raise InputError(
            f"damaged bundle: {name} has changed ({len(changed)} files have): its SHA-256 is {found[name]},"
            f" the manifest lists {listed[name]}",
            value=where,
            fix=REPAIR,
        )


def is_index(name: str) -> bool:
    """Whether this file names the files that hold a component's weights."""
    return ".index." in name.rpartition("/")[2] and name.endswith(".json")


def check_index(name: str, data: bytes, listed: Iterable[str], where: str) -> None:
    """Raise InputError unless every weight file that the index ``name`` names is listed by the manifest too."""
    weights = parse_object(data, f"{where}/{name}", "weight_map", fix=REPAIR)["weight_map"]
    folder = name.rpartition("/")[0]
    with decoding("an index of weight files", f"{where}/{name}", fix=REPAIR):
        named = {f"{folder}/{file}".removeprefix("/") for file in weights.values()}
    if foreign := sorted(named - set(listed)):
        raise InputError(
            f"{name} takes weights from {foreign[0]}, which the bundle's manifest does not list",
            value=where,
            fix=REPAIR,
        )
