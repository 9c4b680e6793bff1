"""Files of a bundle, compared with those that its manifest lists."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError
from lookalike.models.components import REPAIR

MANIFEST = "bundle.json"
_MOST_FILES = 100_000


def is_model_file(name: str) -> bool:
    """Whether a file belongs to the model. Hidden files (``.name``) do not: no library loads them."""
    return not any(segment.startswith(".") for segment in name.split("/"))


def files_in(bundle_dir: Path) -> list[str]:
    """Sorted names of all files below ``bundle_dir`` except the manifest; symbolic links to folders are followed.

    Raises:
        InputError: more than 100,000 files, or a folder that cannot be read.
    """
    names: list[str] = []
    visited = set()
    for root, below, files in os.walk(bundle_dir, followlinks=True):
        folder = Path(root)
        visited.add(_inode(folder))
        for name in list(below):
            if _inode(folder / name) in visited:  # a link to a parent folder
                below.remove(name)
                files.append(name)
        if len(names) + len(files) > _MOST_FILES:  # a link to a whole disk
            raise InputError(
                f"the bundle holds more than {_MOST_FILES} files",
                value=str(bundle_dir),
                fix=f"remove the links to other folders, or {REPAIR}",
            )
        names += [(folder / name).relative_to(bundle_dir).as_posix() for name in files]
    return sorted(name for name in names if name != MANIFEST)


def _inode(folder: Path) -> tuple[int, int]:
    try:
        info = folder.stat()
    except OSError as error:
        raise InputError(
            f"cannot read the folder: {error.strerror or error}",
            value=str(folder),
            fix="check its permissions and the disk",
        ) from error
    return info.st_dev, info.st_ino


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


def check_hashes(listed: Mapping[str, str], actual: Mapping[str, str], where: str) -> None:
    """Raise InputError unless each file's SHA-256 is the one that the manifest of the bundle at ``where`` lists."""
    changed = sorted(name for name, sha256 in listed.items() if actual[name] != sha256)
    if changed:
        name = changed[0]
        raise InputError(
            f"damaged bundle: {name} has changed ({len(changed)} files changed in total): its SHA-256 is"
            f" {actual[name]}, the manifest lists {listed[name]}",
            value=where,
            fix=REPAIR,
        )


def is_index(name: str) -> bool:
    """Whether this file is an index that names a component's weight files."""
    return ".index." in name.rpartition("/")[2] and name.endswith(".json")


def check_index(name: str, data: bytes, listed: Iterable[str], where: str) -> None:
    """Raise InputError unless the manifest lists every weight file that the index ``name`` names."""
    weights = parse_object(data, f"{where}/{name}", "weight_map", fix=REPAIR)["weight_map"]
    folder = name.rpartition("/")[0]
    with decoding("an index of weight files", f"{where}/{name}", fix=REPAIR):
        named = {f"{folder}/{file}".removeprefix("/") for file in weights.values()}
    if foreign := sorted(named - set(listed)):
        raise InputError(
            f"{name} names the weight file {foreign[0]}, which the bundle's manifest does not list",
            value=where,
            fix=REPAIR,
        )
