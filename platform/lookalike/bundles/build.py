"""Build the initial bundle of a preset: components are copied from their sources, or made from a seed.

Light at import: a driver that only copies shipped components starts without PyTorch.
"""

import logging
import shutil
from importlib.metadata import version
from pathlib import Path

from lookalike.bundles.manifest import write_manifest
from lookalike.documents import parse_object, render_json
from lookalike.errors import ConfigError, InputError
from lookalike.models.components import component_config, hub_snapshot
from lookalike.models.families import family_of
from lookalike.models.presets import Preset, asset

log = logging.getLogger(__name__)

_LIBRARIES = ("transformers", "diffusers")  # of a bundle's classes, besides our own
_KEPT = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md")


def materialise(preset: Preset, folder: Path, seed: int = 0) -> Path:
    """Write the initial bundle of ``preset`` into ``folder``, which is created if needed; returns ``folder``.

    Equal presets and seeds give equal files. Raises InputError for a source that does not exist or a folder that is not
    empty, and ConfigError for a component with neither source nor configuration.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError("the folder of a new bundle is not empty", value=str(folder), fix="choose an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    licences = ", ".join(f"{part} {licence}" for part, licence in preset.licences.items())
    log.info("building a bundle of %s; licences of its weights: %s", preset.name, licences)
    if preset.notice is not None:
        log.warning("%s: %s", preset.name, preset.notice)
    # the aggregator comes last: its widths are those of the MLLM and the DiT in the folder
    for name in ("mllm", "vae", "transformer", "scheduler", "aggregator"):
        component, target = getattr(preset, name), folder / name
        if component.source is not None:
            where = {key: getattr(component, key, None) for key in ("revision", "subfolder")}
            fetch(component.source, target, **where)
        else:
            from lookalike.models.new_components import make_component

            make_component(name, preset, folder, seed)
    _check_aggregator(preset, folder)
    write_model_index(folder)
    write_manifest(folder, preset)
    return folder


def fetch(source: str, target: Path, *, revision: str | None = None, subfolder: str | None = None) -> None:
    """Copy a component's files to ``target``.

    ``source`` is ``package:NAME`` (a folder of the shipped assets), a local folder, or a Hub id, for which ``revision``
    is a commit; ``subfolder`` is the component's folder inside the source.

    Raises InputError if the source does not exist, and ConfigError for ``package:`` outside the shipped assets.
    """
    if source.startswith("package:"):
        origin = asset(source.removeprefix("package:"))
    elif Path(source).is_dir():
        origin = Path(source)
    else:
        # a pattern also matches in subfolders, and the root of a pipeline may hold a second copy of the weights
        options = {"revision": revision, "ignore_patterns": None if subfolder else ["*/*"]}
        origin = hub_snapshot(source, _KEPT, subfolder, fix="check the preset's source", **options)
    origin = origin / (subfolder or "")
    if not origin.is_dir():
        name = f"{source}/{subfolder}" if subfolder else source
        raise InputError("the source of a component is not a folder", value=name, fix="check the preset's source")
    target.mkdir(parents=True)
    for pattern in _KEPT:
        for file in origin.glob(pattern):
            shutil.copyfile(file, target / file.name)


def write_model_index(folder: Path) -> None:
    """Write ``model_index.json``, in which a DiffusionPipeline of diffusers finds the classes of its components."""
    model_type = component_config(folder, "mllm", "model_type")["model_type"]
    index = {
        "_class_name": "SubjectPipeline",
        "_diffusers_version": version("diffusers"),
        "mllm": ["transformers", family_of(model_type).base_class],
        "vae": ["diffusers", "AutoencoderKL"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "aggregator": ["lookalike.models.aggregate", "LayerAggregator"],
    }
    (folder / "model_index.json").write_bytes(render_json(index, indent=2))


def check_model_index(folder: Path) -> None:
    """Raise InputError if ``model_index.json`` names a class of a library that bundles do not use.

    diffusers would import any module that is written there.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        return  # the loader reports it
    index = parse_object(path.read_bytes(), str(path))
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        library = str(value[0]) if len(value) == 2 else ""
        known = value == [None, None] or library in _LIBRARIES or library.startswith("lookalike.")
        if name.startswith("_") or not known:
            raise InputError(
                f"model_index.json names a class that no bundle has: {name}={value!r:.200}",
                value=str(path),
                fix="download or export the bundle again",
            )


def _check_aggregator(preset: Preset, folder: Path) -> None:
    config = preset.aggregator
    actual = component_config(folder, "aggregator", "kind")["kind"]
    if actual != config.kind:
        raise ConfigError(
            f"aggregator.source holds an aggregator of kind {actual}, and aggregator.kind is {config.kind}",
            value=config.source,
            fix=f"set aggregator.kind to {actual}, or remove aggregator.source (or train from_seed)",
        )
