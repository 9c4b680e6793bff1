"""Read and decode the photos of a suite; those in use are kept in memory up to a bound."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from lookalike.data.images import decode
from lookalike.data.ranges import ByteRange
from lookalike.data.triplet_files import StoredFile, read_stored
from lookalike.errors import InputError
from lookalike.evaluation.suites import Photo
from lookalike.models.preprocess import check_image
from lookalike.storage import open_store

_MOST_BYTES = 512 << 20  # of decoded photos beyond those of one call


class Photos:
    """Decoded photos by their hash."""

    def __init__(self) -> None:
        self._decoded: OrderedDict[str, np.ndarray] = OrderedDict()

    def load(self, photos: Sequence[Photo]) -> list[np.ndarray]:
        """Return the pixels of ``photos``: uint8 RGB ``[H, W, 3]``, upright, at the size of the file.

        Raises:
            InputError: the bytes of a photo have changed, do not decode, or have a size that is not supported.
            ShardError: nothing in a pack can be read.
        """
        missing = {photo.sha256: photo for photo in photos if photo.sha256 not in self._decoded}
        for photo, data in zip(missing.values(), _read(list(missing.values())), strict=True):
            if isinstance(data, InputError):
                raise data
            self._decoded[photo.sha256] = _decoded(photo, data)
        for photo in photos:
            self._decoded.move_to_end(photo.sha256)
        pixels = [self._decoded[photo.sha256] for photo in photos]
        while len(self._decoded) > len(photos) and sum(each.nbytes for each in self._decoded.values()) > _MOST_BYTES:
            self._decoded.popitem(last=False)
        return pixels


def _read(photos: Sequence[Photo]) -> Iterable[bytes | InputError]:
    """Yield the bytes of each photo, checked by its hash; those of packs are read at once."""
    packed = [photo for photo in photos if photo.offset is not None]
    read: dict[Photo, bytes | InputError] = {}
    for uri in dict.fromkeys(photo.store for photo in packed):
        there = [photo for photo in packed if photo.store == uri]
        files = [
            StoredFile(photo.what, ByteRange(photo.key, photo.offset or 0, photo.length or 0), photo.sha256)
            for photo in there
        ]
        read.update(zip(there, read_stored(open_store(uri), files), strict=True))
    for photo in photos:
        yield read[photo] if photo in read else _file(photo)


def _file(photo: Photo) -> bytes | InputError:
    store = open_store(photo.store)
    try:
        data = store.read(photo.key)
    except InputError as error:
        return error
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        what = f"{photo.what} has changed since the evaluation started"
        return InputError(what, value=store.uri_of(photo.key), fix="restore it, or evaluate into another location")
    return data


def _decoded(photo: Photo, data: bytes) -> np.ndarray:
    fix = "replace or remove the file, and run the same command again"
    try:
        pixels = decode(data)
        check_image(pixels, photo.what.removeprefix("the "))
    except InputError as error:
        what = error.what if "pixels, a size" in error.what else f"{photo.what} does not decode: {error.what}"
        raise InputError(what, value=photo.key, fix=fix) from error
    return pixels
