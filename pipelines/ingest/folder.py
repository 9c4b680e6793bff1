"""A folder of photos as a source: ``<subject>/<nn>.jpg``.

Each photo can have a caption ``<nn>.txt``, labels ``<nn>.json`` and a mask ``<nn>.mask.png`` (white on the subject)
beside it.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from pipelines.ingest.source import Plan, shard_name

_SIDECARS = {".txt", ".json"}
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


@dataclass(frozen=True)
class FolderShard:
    """Photos of one shard, whose bytes are copied unchanged."""

    name: str
    """Key below the raw prefix."""
    source: str
    """URI of the source."""
    licence: str
    """Licence of photos whose sidecars name none."""
    photos: tuple[PhotoFile, ...]
    """The photos, in the order of their keys."""

    @property
    def images(self) -> int:
        """Number of photos in the shard."""
        return len(self.photos)

    def write(self, path: Path) -> None:
        """Read the photos and write the tar to ``path``."""
        write_tar(path, self._samples())

    def _samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        store = open_store(self.source)
        for photo in self.photos:
            meta: dict[str, Any] = {
                "subject": normal(photo.subject),
                "class": photo.class_name,
                "source": store.uri_of(photo.path),
                "licence": self.licence,
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
            yield photo.key, payload


def plan_folder(config: IngestConfig) -> Plan:
    """List the source and assign its photos to shards.

    Raises:
        InputError: the source is missing or empty, a subject's folder has no image, or a named subject does not exist.
    """
    store = open_store(config.source)
    listing, unlisted = _listing(store)
    if not listing:
        why = f": {', '.join(sorted(set(unlisted.values())))}" if unlisted else ""
        what = f"the source is missing or empty{why}"
        raise InputError(what, value=config.source, fix="name a folder of photos")
    listing, unreadable = _with_readable_names(listing)
    unreadable |= {info.key: why for info in listing if (why := _too_large(info, config))}
    listing = [info for info in listing if info.key not in unreadable]
    folders, skipped = _by_subject(listing)
    skipped |= unlisted | unreadable
    # compared in one of Unicode's normal forms, since a file system may store another than the user types
    wanted, excluded = ({normal(name) for name in names} for names in (config.subjects, config.exclude_subjects))
    for name in sorted((wanted | excluded) - {normal(name) for name in folders}):
        raise InputError(
            "the source has no such subject", value=name, fix=f"choose from {', '.join(sorted(folders)) or 'none'}"
        )
    chosen = [name for name in folders if normal(name) not in excluded and (not wanted or normal(name) in wanted)]
    skipped |= {f"{name}/": "excluded" for name in folders if name not in chosen}
    classes = _classes(store, {info.key for info in listing})
    photos: list[PhotoFile] = []
    for name in chosen:
        photos += _photos(name, folders[name], classes.get(normal(name)) or class_of(name), skipped)
    if not photos:
        raise InputError(
            "the source has no photos in subject folders", value=config.source, fix="lay them out as <subject>/<nn>.jpg"
        )
    check_sidecars(store, [sidecar for photo in photos for sidecar in photo.sidecars])
    shards = [
        FolderShard(shard_name(index), store.uri, config.licence, tuple(part))
        for index, part in enumerate(_split_by_size(_unique_keys(photos), config.shard_mib << 20))
    ]
    identity = fingerprint([[info.key, info.size] for info in listing])
    return Plan(shards, subjects=len({normal(name) for name in chosen}), identity=identity, skipped=skipped)


def _too_large(info: ObjectInfo, config: IngestConfig) -> str:
    """Why a file is too large to be read; empty if it is not."""
    name = "max_text_mib" if PurePosixPath(info.key).suffix in (*_SIDECARS, ".csv") else "max_file_mib"
    most = getattr(config, name)
    return f"more than {most} MiB ({name})" if info.size > most << 20 else ""


def _listing(store: Store) -> tuple[list[ObjectInfo], dict[str, str]]:
    """The files of the source, and the other names by reason."""
    listing: list[ObjectInfo] = []
    unlisted: dict[str, str] = {}
    for entry in survey(store):
        if isinstance(entry, Skipped):
            unlisted[entry.key] = _UNLISTED.get(entry.reason, entry.reason)
        else:
            listing.append(entry)
    return listing, unlisted


def class_of(folder: str) -> str:
    """Derive a class name from a folder's name: ``"toy_car_03"`` gives ``"toy car"``."""
    return re.sub(r"[\s_-]+", " ", re.sub(r"[\d\s_-]+$", "", folder)).strip().lower() or "object"


def _by_subject(listing: list[ObjectInfo]) -> tuple[dict[str, list[ObjectInfo]], dict[str, str]]:
    folders: dict[str, list[ObjectInfo]] = {}
    skipped: dict[str, str] = {}
    for info in listing:
        parts = info.key.split("/")
        if any(part.startswith(".") for part in parts):
            skipped[info.key] = "hidden file"
        elif len(parts) == 2:
            folders.setdefault(parts[0], []).append(info)
        else:
            skipped[info.key] = "not directly in a subject's folder"
    return folders, skipped


def _photos(subject: str, files: list[ObjectInfo], class_name: str, skipped: dict[str, str]) -> Iterator[PhotoFile]:
    keys = {info.key for info in files}
    used: set[str] = set()
    has_images = False
    for info in files:
        path = PurePosixPath(info.key)
        if path.suffix[1:].lower() not in EXTENSIONS or path.name.lower().endswith(MASK):
            continue
        has_images = True
        sidecars = tuple(str(path.with_suffix(s)) for s in sorted(_SIDECARS, reverse=True))
        present = tuple(key for key in sidecars if key in keys)
        mask = str(path.with_suffix(MASK)) if str(path.with_suffix(MASK)) in keys else None
        used |= {info.key, *present, *([mask] if mask else [])}
        key = f"{subject}-{path.stem}".replace(".", "_")
        yield PhotoFile(key, info.key, subject, class_name, present, mask, info.size)
    if not has_images and any(_needs_heic(info.key) for info in files):
        raise InputError(
            "all photos of a subject are HEIC, HEIF or AVIF, which need an extra",
            value=subject,
            fix="pip install 'lookalike[heic]', or convert them to JPEG",
        )
    if not has_images:
        raise InputError(
            "the folder of a subject has no image", value=subject, fix="add photos, or name it in --exclude-subjects"
        )
    skipped |= {
        key: _HEIC_LACKS if _needs_heic(key) else "neither an image nor the sidecar of an image"
        for key in sorted(keys - used)
    }


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


def _with_readable_names(listing: list[ObjectInfo]) -> tuple[list[ObjectInfo], dict[str, str]]:
    """The files whose names are UTF-8, and the reasons of the others, by name with other bytes as ``\\udcXX``."""
    readable = [info for info in listing if is_utf8(info.key)]
    reason = "its name is not UTF-8: rename it"
    return readable, {escaped(info.key): reason for info in listing if not is_utf8(info.key)}


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
