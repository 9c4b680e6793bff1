"""Copy bundles between stores and this machine, verifying every file. Light at import: drivers use it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from lookalike.bundles.digests import file_sha256s
from lookalike.bundles.manifest import (
    MANIFEST,
    BundleReference,
    bundle_sha256,
    is_model_file,
    parse_manifest,
    preset_of,
    read_manifest,
)
from lookalike.bundles.verification import check_contents, check_listed, open_bundle, verify
from lookalike.errors import InputError
from lookalike.scratch import kept_folder, scratch
from lookalike.storage import Store, open_store
from lookalike.storage.local import LocalStore
from lookalike.storage.store import sha256_of, upload_tree


def local_bundle(uri: str, sha256: str | None = None) -> Path:
    """Return a local folder with the bundle at ``uri``, every file verified.

    A bundle in a local store stays where it is; any other is copied, and the copy is removed when the process ends.
    Raises InputError for no bundle, a damaged one, or one with another identity than ``sha256``.
    """
    store = open_store(uri)
    folder = store.root if isinstance(store, LocalStore) else _downloaded(uri)
    _check_identity(folder, store.uri, sha256)
    return folder


@contextmanager
def opened_adapter(bundle: BundleReference) -> Iterator[Path | None]:
    """Give the local folder of a bundle's adapter, verified; None if it has none.

    A copy of a personal bundle is removed at the end of the block; a base is kept as :func:`local_bundle` keeps it.
    Raises InputError as :func:`fetch_bundle`.
    """
    if bundle.base is None or isinstance(open_store(bundle.uri), LocalStore):
        yield fetch_bundle(bundle)[1]
        return
    with scratch("adapter") as folder:
        _download(bundle.uri, folder)
        _check_identity(folder, bundle.uri, bundle.sha256)
        yield open_bundle(folder, local_bundle(bundle.base.uri))[1]


def _check_identity(folder: Path, uri: str, sha256: str | None) -> None:
    actual = bundle_sha256(verify(folder, uri))
    if sha256 is not None and actual != sha256:
        raise InputError(
            f"the bundle here was replaced: it is {actual[:12]}, and {sha256[:12]} is expected",
            value=uri,
            fix="restore the expected one, or start again with this one at another output",
        )


@lru_cache(maxsize=4)
def _downloaded(uri: str) -> Path:
    folder = kept_folder("bundle")
    _download(uri, folder)
    return folder


def _download(uri: str, folder: Path) -> None:
    """Copy the files that the manifest lists, and verify them; each is hashed while the next ones are being copied."""
    store = open_store(uri)
    store.download(MANIFEST, folder / MANIFEST)
    listed = read_manifest(folder)["components"]
    check_listed(listed, {info.key for info in store.list()} - {MANIFEST}, store.uri)
    with ThreadPoolExecutor(max_workers=4) as pool:
        for name in listed:
            store.download(name, folder / name)
            pool.submit(file_sha256s, folder, [name], keep=False)
    verify(folder, store.uri)


def local_folders(bundle: BundleReference) -> tuple[Path, Path | None]:
    """Return the local folders of a bundle and of its base, as :func:`local_bundle` gives them."""
    base = bundle.base
    return local_bundle(bundle.uri, bundle.sha256), None if base is None else local_bundle(base.uri)


def fetch_bundle(bundle: BundleReference) -> tuple[Path, Path | None]:
    """Copy a bundle and its base to this machine, if they are not there, and open them as :func:`open_bundle`.

    Raises InputError if one is damaged or was replaced, or the base is not the one that the adapter was trained on.
    """
    return open_bundle(*local_folders(bundle))


def verified_reference(uri: str) -> BundleReference:
    """Verify the finished bundle at ``uri`` and return its reference; a base is named as it was recorded."""
    manifest = read_manifest(local_bundle(uri))
    base = manifest["base"] and BundleReference(manifest["base"]["uri"], manifest["base"]["sha256"])
    return BundleReference(uri, bundle_sha256(manifest), base, preset_of(manifest, uri))


def verify_bundle(uri: str) -> str:
    """Verify the bundle at ``uri`` without copying it; returns its identity. Raises InputError as local_bundle."""
    store = open_store(uri)
    if isinstance(store, LocalStore):
        return bundle_sha256(read_manifest(local_bundle(uri)))
    manifest = parse_manifest(store.read(MANIFEST), store.uri_of(MANIFEST))
    listed = manifest["components"]
    sizes = {info.key: info.size for info in store.list() if info.key != MANIFEST}
    check_listed(listed, set(sizes), store.uri)
    with ThreadPoolExecutor(max_workers=4) as pool:
        hashes = pool.map(lambda name: sha256_of(store, name, sizes[name]), listed)
        actual = dict(zip(listed, hashes, strict=True))
    check_contents(listed, actual, store.read, store.uri)
    return bundle_sha256(manifest)


def upload_bundle(folder: Path, store: Store, check: Callable[[], None] = lambda: None) -> None:
    """Move a bundle's files into a store; ``bundle.json`` is written last, since it makes the bundle complete.

    Files of an earlier attempt that was killed are removed if this bundle does not have them.

    Args:
        folder: local folder of the bundle; its ``bundle.json`` is removed.
        store: where the bundle goes.
        check: raises if another process may write here by now; called before the copy and before the manifest.
    """
    manifest = folder / MANIFEST
    data = manifest.read_bytes()
    listed = parse_manifest(data, str(manifest))["components"]
    check()
    for info in store.list():
        if is_model_file(info.key) and info.key not in listed:
            store.delete(info.key)
    manifest.unlink()
    upload_tree(folder, store)
    check()
    store.write(MANIFEST, data)
