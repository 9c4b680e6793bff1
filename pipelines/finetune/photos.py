"""Check a customer's photos before a finetune: their layout, their number, their formats, and their identity."""

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from lookalike import config as configs
from lookalike.data.formats import HEIC_EXTENSIONS
from lookalike.data.images import EXTENSIONS
from lookalike.errors import InputError
from lookalike.storage import Store
from lookalike.storage.store import sha256_of
from pipelines.curate.raw import is_shard
from pipelines.ingest.folder import MASK

MIN_PHOTOS, MAX_PHOTOS = 4, 20
_MAX_FILES = 1_000  # a personal set has few; with more, it is the wrong folder
_OTHER_FORMATS = (*HEIC_EXTENSIONS, "tif", "tiff", "gif", "bmp", "jp2", "jxl", "dng", "cr2", "cr3", "nef", "arw", "raw")


@dataclass(frozen=True)
class PhotoSet:
    """The photos at the location that a customer named."""

    raw: bool
    """Whether it is raw shards (tars); else a folder for each subject."""
    sha256: str
    """Identity: names and bytes of all files, wherever they lie."""
    number: int | None
    """How many photos; None for raw shards, which are counted when they are curated."""


def photo_set(store: Store, shown: str) -> PhotoSet:
    """Check the photos before any work; ``shown`` is their location as the user wrote it.

    Raises InputError for no, too few or too many photos, photos of several subjects, or formats that are not read.
    """
    sizes = {info.key: info.size for info in store.list() if "/." not in f"/{info.key}"}  # no hidden files
    keys = list(sizes)
    if not keys:
        raise InputError(
            "no photos were found", value=shown, fix=f"name a location with {MIN_PHOTOS} to {MAX_PHOTOS} photos"
        )
    if len(keys) > _MAX_FILES:
        raise InputError(
            f"{len(keys)} files are too many for a set of photos",
            value=shown,
            fix=f"name a folder with {MIN_PHOTOS} to {MAX_PHOTOS} photos",
        )
    tars = [key for key in keys if is_shard(key)]
    number = None
    if not tars:
        number = _check_photos(keys, shown)
    elif any(_extension(key) in EXTENSIONS for key in keys):
        what = "the location holds both raw shards and loose photos"
        raise InputError(what, value=shown, fix="name a folder with either")
    hashes = [[key, sha256_of(store, key, sizes[key])] for key in sorted(keys)]
    return PhotoSet(bool(tars), configs.fingerprint(hashes), number)


def check_number(number: int, shown: str) -> None:
    """Raise InputError for too few photos, or too many."""
    if MIN_PHOTOS <= number <= MAX_PHOTOS:
        return
    change = f"add {MIN_PHOTOS - number} or more" if number < MIN_PHOTOS else f"remove {number - MAX_PHOTOS}"
    what = f"the number of photos is {number}, and a finetune takes {MIN_PHOTOS} to {MAX_PHOTOS}"
    raise InputError(what, value=shown, fix=f"{change}, and run the same command again")


def _check_photos(keys: list[str], shown: str) -> int:
    """The number of photos. Raises InputError unless a finetune can use them."""
    photos = [key for key in keys if _is_photo(key) and _extension(key) in EXTENSIONS]
    unread = Counter(_extension(key) for key in keys if _is_photo(key) and _extension(key) not in EXTENSIONS)
    inside = [key for key in photos if key.count("/") == 1]
    if unread and len(inside) < MIN_PHOTOS:
        names = ", ".join(f"{number} {extension.upper()}" for extension, number in sorted(unread.items()))
        is_heic = unread.keys() & set(HEIC_EXTENSIONS)
        heic = "install the extra with: pip install 'lookalike[heic]'; or " if is_heic else ""
        raise InputError(
            f"only {len(inside)} photos can be read, and files in these formats cannot: {names}",
            value=shown,
            fix=f"{heic}save them as JPEG, and run the same command again",
        )
    if photos and not inside:
        raise InputError(
            f"none of the {len(photos)} photos is directly in a subject's folder",
            value=shown,
            fix=f"lay them out as {shown.rstrip('/')}/SUBJECT/01.jpg, and name {shown.rstrip('/')} as --photos",
        )
    folders = sorted({key.split("/")[0] for key in inside})
    if len(folders) > 1:
        raise InputError(
            f"the location holds photos of {len(folders)} subjects: {', '.join(folders[:5])}",
            value=shown,
            fix="leave one subject's folder there, and run the same command again",
        )
    check_number(len(inside), shown)
    return len(inside)


def _extension(key: str) -> str:
    return PurePosixPath(key).suffix[1:].lower()


def _is_photo(key: str) -> bool:
    return _extension(key) in (*EXTENSIONS, *_OTHER_FORMATS) and not key.lower().endswith(MASK)
