"""Find a customer's photos before a finetune: their layout, their number, their formats, and their identity."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from lookalike import config as configs
from lookalike.data.formats import HEIC_EXTENSIONS
from lookalike.data.images import EXTENSIONS
from lookalike.data.text import escaped, is_utf8
from lookalike.data.zipped import ZipStore, open_zip
from lookalike.errors import ConfigError, InputError
from lookalike.storage import Store, locate_object, open_store
from lookalike.storage.store import sha256_of
from lookalike.storage.walk import Skipped
from pipelines.curate.raw import is_shard
from pipelines.ingest.folder import MASK

MIN_PHOTOS, MAX_PHOTOS = 4, 20
SIDECARS = (".txt", ".json")
_MAX_FILES = 1_000  # a personal set has few; with more, it is the wrong folder
_OTHER_FORMATS = (*HEIC_EXTENSIONS, "tif", "tiff", "gif", "bmp", "jp2", "jxl", "dng", "cr2", "cr3", "nef", "arw", "raw")


@dataclass(frozen=True)
class PhotoSet:
    """The photos at the location that a customer named."""

    raw: bool
    """Whether it is raw shards (tars); else photo files."""
    sha256: str
    """Identity: names and bytes of all files, wherever they lie, also in a zip archive."""
    number: int | None
    """How many photos; None for raw shards, which are counted when they are curated."""
    folder: str = ""
    """Name of the folder that the photos lie in, below the location; empty if they lie there themselves."""
    photos: tuple[str, ...] = ()
    """Keys of the photos in ``store``, sorted."""
    skipped: dict[str, str] = field(default_factory=dict, compare=False)
    """Files that are not used, with the reason."""
    store: Store | None = field(default=None, compare=False)
    """Where they lie; a zip archive is a store, too."""


def open_photos(uri: str) -> Store:
    """Open the location of photos: a folder, a prefix on S3, or a zip archive at either.

    Raises InputError for a file that is no zip archive.
    """
    try:
        outer, key = locate_object(uri)
    except ConfigError:  # a bucket, or a folder by its slash
        return open_store(uri)
    if not outer.exists(key):
        return open_store(uri)
    archive = open_zip(outer, key)
    if archive is None:
        raise InputError("the location is one file, and not a zip archive", value=uri, fix="name a folder, or a .zip")
    return archive


def photo_set(store: Store, shown: str) -> PhotoSet:
    """Check the photos before any work; ``shown`` is their location as the user wrote it.

    Raises InputError for no, too few or too many photos, photos in several folders, or formats that are not read.
    """
    sizes, skipped = _files(store)
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
    hashes = _hashes(store, sizes, skipped)
    keys = [key for key in keys if key not in skipped]
    if not any(is_shard(key) for key in keys):
        folder, photos = _check_photos(keys, shown)
        used = {beside for key in photos for beside in (key, *beside_photo(key))}
        skipped |= {key: "neither a photo nor the sidecar of one" for key in keys if key not in used}
        return PhotoSet(False, configs.fingerprint(hashes), len(photos), folder, tuple(photos), skipped, store)
    if any(_extension(key) in EXTENSIONS for key in keys) or isinstance(store, ZipStore):
        what = "the location holds both raw shards and loose photos"
        if isinstance(store, ZipStore):
            what = "the archive holds raw shards"
        raise InputError(what, value=shown, fix="name a folder with either")
    return PhotoSet(True, configs.fingerprint(hashes), None, store=store)


def beside_photo(key: str) -> tuple[str, ...]:
    """Return the keys at which the caption, the labels and the mask of a photo may lie."""
    path = PurePosixPath(key)
    return tuple(str(path.with_suffix(suffix)) for suffix in (*SIDECARS, MASK))


def check_number(number: int, shown: str) -> None:
    """Raise InputError for too few photos, or too many."""
    if MIN_PHOTOS <= number <= MAX_PHOTOS:
        return
    change = f"add {MIN_PHOTOS - number} or more" if number < MIN_PHOTOS else f"remove {number - MAX_PHOTOS}"
    what = f"the number of photos is {number}, and a finetune takes {MIN_PHOTOS} to {MAX_PHOTOS}"
    raise InputError(what, value=shown, fix=f"{change}, and run the same command again")


def _files(store: Store) -> tuple[dict[str, int], dict[str, str]]:
    """The size of each file that is not hidden, and why other names give none."""
    sizes: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for entry in store.survey() if isinstance(store, ZipStore) else store.list():
        if isinstance(entry, Skipped):
            skipped[entry.key] = entry.reason
        elif "/." in f"/{entry.key}":
            skipped[entry.key] = "hidden file"
        elif not is_utf8(entry.key):
            skipped[escaped(entry.key)] = "its name is not UTF-8: rename it"
        else:
            sizes[entry.key] = entry.size
    return sizes, skipped


def _hashes(store: Store, sizes: dict[str, int], skipped: dict[str, str]) -> list[list[str]]:
    """[name, SHA-256] of each file, sorted; a damaged file of an archive has its reason in place of a hash."""
    hashes = []
    for key in sorted(sizes):
        try:
            hashes.append([key, sha256_of(store, key, sizes[key])])
        except InputError as error:
            if not isinstance(store, ZipStore):
                raise
            skipped[key] = error.what
            hashes.append([key, error.what])
    return hashes


def _check_photos(keys: list[str], shown: str) -> tuple[str, list[str]]:
    """The folder of the photos, and their keys. Raises InputError unless a finetune can use them."""
    photos = sorted(key for key in keys if _is_photo(key) and _extension(key) in EXTENSIONS)
    unread = Counter(_extension(key) for key in keys if _is_photo(key) and _extension(key) not in EXTENSIONS)
    if unread and len(photos) < MIN_PHOTOS:
        names = ", ".join(f"{number} {extension.upper()}" for extension, number in sorted(unread.items()))
        is_heic = unread.keys() & set(HEIC_EXTENSIONS)
        heic = "install the extra with: pip install 'lookalike[heic]'; or " if is_heic else ""
        raise InputError(
            f"only {len(photos)} photos can be read, and files in these formats cannot: {names}",
            value=shown,
            fix=f"{heic}save them as JPEG, and run the same command again",
        )
    archives = [key for key in keys if _extension(key) == "zip"]
    if archives and not photos:
        where = f"{shown.rstrip('/')}/{archives[0]}"
        raise InputError("the location holds a zip archive and no photos", value=shown, fix=f"name {where} as --photos")
    folders = sorted({key.rpartition("/")[0] for key in photos})
    if len(folders) > 1:
        named = ", ".join(folder or "(no folder)" for folder in folders[:5])
        raise InputError(
            f"the location holds photos of {len(folders)} subjects: {named}",
            value=shown,
            fix="leave one subject's folder there, and run the same command again",
        )
    check_number(len(photos), shown)
    return folders[0].rpartition("/")[2], photos


def _extension(key: str) -> str:
    return PurePosixPath(key).suffix[1:].lower()


def _is_photo(key: str) -> bool:
    return _extension(key) in (*EXTENSIONS, *_OTHER_FORMATS) and not key.lower().endswith(MASK)
