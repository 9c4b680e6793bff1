"""Take a customer's photos in: upright, without EXIF and other metadata, under numbers in place of their names.

What the store keeps of a photo is what :func:`~lookalike.data.cleaning.clean_photo` leaves of it. The bytes as the
customer sent them are read and never stored.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from lookalike.config import canonical_json
from lookalike.data.cleaning import clean_photo
from lookalike.data.images import ImageError
from lookalike.documents import render_json
from lookalike.errors import InputError
from lookalike.storage import Store, read_members
from pipelines.finetune.photos import SIDECARS, PhotoSet, beside_photo
from pipelines.ingest.folder import MASK, class_of
from pipelines.ingest.sidecars import check_sidecars, read_sidecar

log = logging.getLogger(__name__)

PHOTOS = "photos.json"  # written last
_KEPT_LABELS = ("caption", "class", "licence")  # of a sidecar; others may say where and when a photo was taken


@dataclass(frozen=True)
class TakenIn:
    """One photo, or another file, of the customer."""

    name: str
    """As the customer named it."""
    key: str
    """Key of the photo that is stored, ``SUBJECT/01.jpg``; empty if it is not used."""
    reason: str = ""
    """Why it is not used."""
    note: str = ""
    """What was wrong beside it."""


def take_in(photos: PhotoSet, target: Store, subject: str, class_name: str | None = None) -> list[TakenIn]:
    """Write the photos into ``target`` as ``SUBJECT/01.jpg`` and so on, each with its labels and its mask.

    The same photos give the same bytes again. A photo that cannot be decoded is left out with the reason.

    Args:
        photos: photo files, not raw shards.
        target: where they are written; complete if it has ``photos.json``.
        subject: names their folder.
        class_name: class of the subject; by default that of a photo's labels, or derived from the folder's name.

    Raises:
        InputError: a sidecar is not valid, or no photo can be decoded.
    """
    if target.exists(PHOTOS):
        return [TakenIn(**row) for row in read_members(target, PHOTOS, {"photos": list})["photos"]]
    assert photos.store is not None
    check_all_sidecars(photos)
    rows: list[TakenIn] = []
    number = 0
    for name in photos.photos:
        key = f"{subject}/{number + 1:02d}"
        row = _take(photos, name, key, target, {"class": class_name or class_of(photos.folder or subject)}, class_name)
        number += not row.reason
        rows.append(row)
    rows += [TakenIn(name, "", reason) for name, reason in sorted(photos.skipped.items())]
    if number == 0:
        what = f"none of the {len(photos.photos)} photos can be decoded ({rows[0].reason})"
        raise InputError(what, value=photos.store.uri, fix="save them as JPEG, and run the same command again")
    for row in rows:
        if row.reason and row.reason != "hidden file":
            log.warning("%s is not used: %s", row.name, row.reason)
    target.write(PHOTOS, render_json({"photos": [asdict(row) for row in rows]}))
    return rows


def check_all_sidecars(photos: PhotoSet) -> None:
    """Raise InputError that names all sidecars of the photos that are not valid."""
    if photos.store is not None:
        check_sidecars(photos.store, [key for photo in photos.photos for key in _sidecars(photos, photo)])


def _sidecars(photos: PhotoSet, photo: str) -> list[str]:
    assert photos.store is not None
    there = [key for key in beside_photo(photo) if not key.endswith(MASK) and key not in photos.skipped]
    return [key for key in there if PurePosixPath(key).suffix in SIDECARS and photos.store.exists(key)]


def _take(
    photos: PhotoSet, name: str, key: str, target: Store, labels: dict[str, Any], class_name: str | None
) -> TakenIn:
    store = photos.store
    assert store is not None
    try:
        data, extension = clean_photo(store.read(name))
    except ImageError as error:
        return TakenIn(name, "", f"undecodable: {error.what}")
    for sidecar in _sidecars(photos, name):
        labels |= {label: text for label, text in read_sidecar(store, sidecar).items() if label in _KEPT_LABELS}
    if class_name is not None:
        labels["class"] = class_name
    note, mask = "", next(beside for beside in beside_photo(name) if beside.endswith(MASK))
    if mask not in photos.skipped and store.exists(mask):
        try:
            cleaned, kind = clean_photo(store.read(mask))
            if kind == "png":
                target.write(f"{key}{MASK}", cleaned)
            else:
                note = "its mask is not a PNG, and is not used"
        except ImageError as error:
            note = f"its mask is not used: {error.what}"
    target.write(f"{key}.json", canonical_json(labels).encode())
    target.write(f"{key}.{extension}", data)
    return TakenIn(name, f"{key}.{extension}", note=note)
