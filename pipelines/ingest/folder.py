"""A folder of photos as a source: ``<subject>/<nn>.jpg``.

Each photo can have a caption ``<nn>.txt``, labels ``<nn>.json`` and a mask ``<nn>.mask.png`` (white on the subject)
beside it.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from lookalike.config import canonical_json, fingerprint
from lookalike.data.formats import HEIC_EXTENSIONS
from lookalike.data.images import EXTENSIONS
from lookalike.data.shards import write_tar
from lookalike.data.text import decode_text, escaped, is_utf8, normal, read_label
from lookalike.errors import InputError
from lookalike.storage import ObjectInfo, Store, open_store
from lookalike.storage.store import survey
from lookalike.storage.walk import Skipped
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.sidecars import check_sidecars, read_sidecar
from pipelines.ingest.source import Plan, Shard, shard_name

_SIDECARS = (".txt", ".json")  # the later one overrides the fields of the earlier one
MASK = ".mask.png"
_UNLISTED = {
    "link_outside": "a link that leads out of the source: copy its target into the source",
    "dangling_link": "a link whose target does not exist",
    "link_loop": "a link that leads back to itself",
    "unreadable": "no permission to read it",
    "special_file": "neither a file nor a folder",
    "empty_folder": "an empty folder",
}
_HEIC_LACKS = "HEIC, HEIF and AVIF need an extra: pip install 'lookalike[heic]'"
_CLASSES_FILE = "prompts_and_classes.txt"  # list of classes in the DreamBooth dataset, beside its folders


@dataclass(frozen=True)
class PhotoFile:
    """One image file, and what is known about it before it is opened."""

    key: str
    """Sample key in the shard."""
    path: str
    """Key of the image below the source."""
    subject: str
    """Name of its folder."""
    class_name: str
    """Class of the subject, unless a sidecar overrides it."""
    sidecars: tuple[str, ...]
    """Keys of its sidecar files."""
    mask: str | None
    """Key of its mask, if it has one."""
    size: int
    """Bytes of the image."""


def _write_shard(path: Path, source: str, licence: str, photos: Sequence[PhotoFile]) -> None:
    """Write a tar with the unchanged bytes of photos, which are read from the URI ``source``."""
    store = open_store(source)
    write_tar(path, (_sample(store, licence, photo) for photo in photos))


def _sample(store: Store, licence: str, photo: PhotoFile) -> tuple[str, dict[str, bytes]]:
    meta: dict[str, Any] = {
        "subject": normal(photo.subject),
        "class": photo.class_name,
        "source": store.uri_of(photo.path),
        "licence": licence,
    }
    for sidecar in photo.sidecars:
        meta |= read_sidecar(store, sidecar)
    meta.setdefault("caption", f"a photo of a {meta['class']}")
    payload = {
        PurePosixPath(photo.path).suffix[1:].lower(): store.read(photo.path),
        "json": canonical_json(meta).encode(),
    }
    if photo.mask is not None:
        payload[MASK[1:]] = store.read(photo.mask)
    return photo.key, payload


def plan_folder(config: IngestConfig) -> Plan:
    """List the source and assign its photos to shards.

    Raises:
        InputError: the source is missing or empty, a subject's folder has no image, or a named subject does not exist.
    """
    store = open_store(config.source)
    files, skipped = _survey(store, config)
    if not files:
        reasons = ", ".join(sorted(set(skipped.values())))
        what = f"no file of the source can be read: {reasons}" if reasons else "the source is missing or empty"
        raise InputError(what, value=config.source, fix="name a folder of photos")
    folders = _by_subject(files, skipped)
    # compared in one of Unicode's normal forms, since a file system may store another than the user types
    wanted, excluded = ({normal(name) for name in names} for names in (config.subjects, config.exclude_subjects))
    for name in sorted((wanted | excluded) - {normal(name) for name in folders}):
        raise InputError(
            "the source has no such subject", value=name, fix=f"choose from {', '.join(sorted(folders)) or 'none'}"
        )
    chosen = [name for name in folders if normal(name) not in excluded and (not wanted or normal(name) in wanted)]
    skipped |= {f"{name}/": "excluded" for name in folders if name not in chosen}
    classes = _classes(store, {info.key for info in files})
    photos: list[PhotoFile] = []
    for name in chosen:
        photos += _photos(name, folders[name], classes.get(normal(name)) or class_of(name), skipped)
    if not photos:
        raise InputError(
            "the source has no photos in subject folders", value=config.source, fix="lay them out as <subject>/<nn>.jpg"
        )
    check_sidecars(store, [sidecar for photo in photos for sidecar in photo.sidecars])
    write = partial(_write_shard, source=store.uri, licence=config.licence)
    parts = enumerate(_split_by_size(_unique_keys(photos), config.shard_mib << 20))
    shards = [Shard(shard_name(index), len(part), partial(write, photos=part)) for index, part in parts]
    identity = fingerprint([[info.key, info.size] for info in files])
    return Plan(shards, subjects=len({normal(name) for name in chosen}), identity=identity, skipped=skipped)


def _survey(store: Store, config: IngestConfig) -> tuple[list[ObjectInfo], dict[str, str]]:
    """List the files of the source that can be read, and the other names with the reason."""
    files: list[ObjectInfo] = []
    skipped: dict[str, str] = {}
    for entry in survey(store):
        limit = "max_text_mib" if PurePosixPath(entry.key).suffix in (*_SIDECARS, ".csv") else "max_file_mib"
        if isinstance(entry, Skipped):
            skipped[entry.key] = _UNLISTED.get(entry.reason, entry.reason)
        elif not is_utf8(entry.key):
            skipped[escaped(entry.key)] = "its name is not UTF-8: rename it"
        elif entry.size > getattr(config, limit) << 20:
            skipped[entry.key] = f"more than {getattr(config, limit)} MiB ({limit})"
        else:
            files.append(entry)
    return files, skipped


def class_of(folder: str) -> str:
    """Derive a class name from a folder's name: ``"toy_car_03"`` gives ``"toy car"``."""
    return re.sub(r"[\s_-]+", " ", re.sub(r"[\d\s_-]+$", "", folder)).strip().lower() or "object"


def _by_subject(files: list[ObjectInfo], skipped: dict[str, str]) -> dict[str, list[ObjectInfo]]:
    folders: dict[str, list[ObjectInfo]] = {}
    for info in files:
        parts = info.key.split("/")
        if any(part.startswith(".") for part in parts):
            skipped[info.key] = "hidden file"
        elif len(parts) == 2:
            folders.setdefault(parts[0], []).append(info)
        else:
            skipped[info.key] = "not directly in a subject's folder"
    return folders


def _photos(subject: str, files: list[ObjectInfo], class_name: str, skipped: dict[str, str]) -> list[PhotoFile]:
    keys = {info.key for info in files}
    used: set[str] = set()
    photos = []
    for info in files:
        path = PurePosixPath(info.key)
        if path.suffix[1:].lower() not in EXTENSIONS or path.name.lower().endswith(MASK):
            continue
        sidecars = tuple(key for suffix in _SIDECARS if (key := str(path.with_suffix(suffix))) in keys)
        mask = str(path.with_suffix(MASK))
        used |= {info.key, mask, *sidecars}
        key = f"{subject}-{path.stem}".replace(".", "_")
        photos.append(
            PhotoFile(key, info.key, subject, class_name, sidecars, mask if mask in keys else None, info.size)
        )
    if not photos and any(_needs_heic(info.key) for info in files):
        raise InputError(
            "all photos of a subject are HEIC, HEIF or AVIF, which need an extra",
            value=subject,
            fix="pip install 'lookalike[heic]', or convert them to JPEG",
        )
    if not photos:
        raise InputError(
            "the folder of a subject has no image", value=subject, fix="add photos, or name it in --exclude-subjects"
        )
    for key in sorted(keys - used):
        skipped[key] = _HEIC_LACKS if _needs_heic(key) else "neither an image nor the sidecar of an image"
    return photos


def _needs_heic(key: str) -> bool:
    extension = PurePosixPath(key).suffix[1:].lower()
    return extension in HEIC_EXTENSIONS and extension not in EXTENSIONS


def _unique_keys(photos: list[PhotoFile]) -> Iterator[PhotoFile]:
    """The photos in the given order, with a number appended to keys that repeat."""
    taken: set[str] = set()
    for photo in photos:
        key, number = photo.key, 2
        while key in taken:
            key, number = f"{photo.key}-{number}", number + 1
        taken.add(key)
        yield replace(photo, key=key)


def _split_by_size(photos: Iterator[PhotoFile], limit: int) -> Iterator[list[PhotoFile]]:
    part: list[PhotoFile] = []
    size = 0
    for photo in photos:
        if part and size + photo.size > limit:
            yield part
            part, size = [], 0
        part.append(photo)
        size += photo.size
    if part:
        yield part


def _classes(store: Store, keys: set[str]) -> dict[str, str]:
    """Class by subject from the list of DreamBooth (a ``subject_name,class`` block between prose), if it exists."""
    if _CLASSES_FILE not in keys:
        return {}
    lines = decode_text(store.read(_CLASSES_FILE), store.uri_of(_CLASSES_FILE)).splitlines()
    try:
        start = [line.strip() for line in lines].index("subject_name,class") + 1
    except ValueError:
        return {}
    classes: dict[str, str] = {}
    try:
        for row in csv.reader(lines[start:]):
            if len(row) != 2:
                break
            classes[normal(row[0].strip())] = read_label(row[1], prose=True).text
    except csv.Error as error:  # such as a field of more than 128 KiB after an unclosed quote
        raise InputError(
            f"the list of classes is not CSV: {error}",
            value=store.uri_of(_CLASSES_FILE),
            fix="write subject_name,class and then one subject per line, and close each quote",
        ) from None
    return classes
