"""Bundles of a run in its store, and opened where a process can read them. Light at import: drivers use it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lookalike.diffusion.stages import stages_of
from lookalike.errors import InputError
from lookalike.models import bundle as bundles
from lookalike.models.presets import check_lora, load_preset
from lookalike.models.sources import materialise
from lookalike.scratch import kept_folder, scratch
from lookalike.storage import Store, open_store
from lookalike.storage.local import LocalStore
from lookalike.storage.store import download_tree, upload_tree
from lookalike.training.config import TrainConfig

INITIAL, BUNDLE = "initial", "bundle"


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
    stages_of(load_preset(config.preset).stages)
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


@lru_cache(maxsize=4)
def local_bundle(uri: str) -> Path:
    """A local folder with the bundle at ``uri``: that folder itself if it is local, else a copy that is removed
    when the process ends."""
    store = open_store(uri)
    return store.root if isinstance(store, LocalStore) else download_tree(store, kept_folder("bundle"))


def reference(uri: str) -> BundleReference:
    """The finished bundle at ``uri``."""
    return BundleReference(uri, bundles.bundle_sha256(bundles.read_manifest(local_bundle(uri))))


def upload_bundle(folder: Path, store: Store, check: Callable[[], None] = lambda: None) -> None:
    """Copy a bundle; ``bundle.json`` goes last, since without it there is no bundle.

    ``check`` raises if another process may write here by now; it is called before the copy and before the manifest.
    """
    manifest = folder / bundles.MANIFEST
    data = manifest.read_bytes()
    manifest.unlink()
    check()
    upload_tree(folder, store)
    check()
    store.write(bundles.MANIFEST, data)
