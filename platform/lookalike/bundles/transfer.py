"""Bundles of a run in its store, and opened where a process can read them. Light at import: drivers use it."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lookalike.bundles import manifest as bundles
from lookalike.bundles.build import materialise
from lookalike.bundles.contents import check_hashes, check_index, check_listed, counts, is_index
from lookalike.bundles.digests import file_sha256s
from lookalike.diffusion.schedule import denoising_schedule
from lookalike.errors import InputError
from lookalike.models.presets import check_lora, load_preset
from lookalike.scratch import kept_folder, scratch
from lookalike.storage import Store, open_store
from lookalike.storage.local import LocalStore
from lookalike.storage.store import upload_tree
from lookalike.training.config import TrainConfig

INITIAL, BUNDLE = "initial", "bundle"
_BLOCK = 16 << 20  # bytes of a range request


@dataclass(frozen=True)
class BundleReference:
    """A bundle by place and identity."""

    uri: str
    sha256: str


def initial_bundle(config: TrainConfig, store: Store) -> BundleReference:
    """What training starts from: the base that the run names, or the preset's sources written once below the run.

    Raises:
        InputError: a base that is incomplete, personal, of another preset, or with a LoRA that is not merged.
        ConfigError: a LoRA rank above the attention width; an unknown preset, or one whose stages are none.
    """
    denoising_schedule(load_preset(config.preset).stages)
    if config.base is not None:
        found = reference(config.base)
        base = local_bundle(config.base)
        bundles.check_preset(base, load_preset(config.preset).name)
        if bundles.read_manifest(base)["base"] is not None:
            raise InputError("the base is a personal bundle itself", value=config.base, fix="train on a whole bundle")
        if (base / bundles.ADAPTER).is_dir():
            raise InputError(
                "the base has a LoRA of its own, which this training would leave out",
                value=config.base,
                fix="export the base with export_lora: merged",
            )
        if config.adapter is not None:
            check_lora(config.adapter, bundles.component_config(base, "transformer"))
        return found
    initial = store.child(INITIAL)
    if not initial.exists(bundles.MANIFEST):
        with scratch("initial") as folder:
            preset = load_preset(config.preset)
            preset = preset.from_seed("transformer", "aggregator") if config.from_seed else preset
            upload_bundle(materialise(preset, folder, config.seed), initial)
    return reference(initial.uri)


def finished_bundle(store: Store) -> BundleReference | None:
    """What the run in ``store`` has exported, if it has."""
    target = store.child(BUNDLE)
    return reference(target.uri) if target.exists(bundles.MANIFEST) else None


def local_bundle(uri: str, sha256: str | None = None) -> Path:
    """A local folder with the bundle at ``uri``, every file of which was verified: that folder itself if it is local,
    else a copy that is removed when the process ends.

    Raises:
        InputError: no bundle, a damaged one, or another one than that with the identity ``sha256``.
    """
    store = open_store(uri)
    folder = store.root if isinstance(store, LocalStore) else _downloaded(uri)
    check_identity(store.uri, bundles.bundle_sha256(bundles.verify(folder, store.uri)), sha256)
    return folder


def check_identity(where: str, found: str, expected: str | None) -> None:
    """Raise InputError if the bundle at ``where`` has another identity than the expected one."""
    if expected is not None and found != expected:
        raise InputError(
            f"the bundle here was replaced: it is {found[:12]}, and {expected[:12]} is expected",
            value=where,
            fix="restore the expected one, or start again with this one at another output",
        )


@lru_cache(maxsize=4)
def _downloaded(uri: str) -> Path:
    """A copy of the files that the manifest lists; each is hashed while the next ones are on their way."""
    store, folder = open_store(uri), kept_folder("bundle")
    store.download(bundles.MANIFEST, folder / bundles.MANIFEST)
    listed = bundles.read_manifest(folder)["components"]
    check_listed(listed, {info.key for info in store.list()} - {bundles.MANIFEST}, store.uri)
    with ThreadPoolExecutor(max_workers=4) as pool:
        hashes = []
        for name in listed:
            store.download(name, folder / name)
            hashes.append(pool.submit(file_sha256s, folder, [name], keep=False))
        found = {name: sha256 for done in hashes for name, sha256 in done.result().items()}
    check_hashes(listed, found, store.uri)
    return folder


def reference(uri: str) -> BundleReference:
    """The finished bundle at ``uri``, verified."""
    return BundleReference(uri, bundles.bundle_sha256(bundles.read_manifest(local_bundle(uri))))


def verify_bundle(uri: str) -> str:
    """Verify the bundle at ``uri`` without a copy of it; returns its identity. Raises InputError as local_bundle."""
    store = open_store(uri)
    if isinstance(store, LocalStore):
        return reference(uri).sha256
    manifest = bundles.parse_manifest(store.read(bundles.MANIFEST), store.uri_of(bundles.MANIFEST))
    listed = manifest["components"]
    sizes = {info.key: info.size for info in store.list() if info.key != bundles.MANIFEST}
    check_listed(listed, set(sizes), store.uri)
    with ThreadPoolExecutor(max_workers=4) as pool:
        hashes = pool.map(lambda name: _streamed_sha256(store, name, sizes[name]), listed)
        check_hashes(listed, dict(zip(listed, hashes, strict=True)), store.uri)
    for name in filter(is_index, listed):
        check_index(name, store.read(name), listed, store.uri)
    return bundles.bundle_sha256(manifest)


def _streamed_sha256(store: Store, key: str, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, _BLOCK):
        digest.update(store.read_range(key, start, min(_BLOCK, size - start)))
    return digest.hexdigest()


def upload_bundle(folder: Path, store: Store, check: Callable[[], None] = lambda: None) -> None:
    """Copy a bundle to its run; ``bundle.json`` goes last, since without it there is no bundle.

    ``check`` raises if another process may write here by now; it is called before the copy and before the manifest.
    What an earlier attempt left there that was killed, and exported into other files, is removed.
    """
    manifest = folder / bundles.MANIFEST
    data = manifest.read_bytes()
    listed = bundles.parse_manifest(data, str(manifest))["components"]
    check()
    for info in store.list():
        if counts(info.key) and info.key not in listed:
            store.delete(info.key)
    manifest.unlink()
    upload_tree(folder, store)
    check()
    store.write(bundles.MANIFEST, data)
