"""From a preset to an initial bundle: components copied from their sources, or made from a seed.

Light at import: a driver that only copies shipped components starts without PyTorch.
"""

import logging
import shutil
from importlib.metadata import version
from pathlib import Path

from lookalike.bundles.manifest import component_config, write_manifest
from lookalike.documents import parse_object, render_json
from lookalike.errors import ConfigError, InputError
from lookalike.models.families import family_of
from lookalike.models.presets import ASSETS_DIR, Preset

log = logging.getLogger(__name__)

_LIBRARIES = ("transformers", "diffusers")  # beside our own
_KEPT = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md")


def materialise(preset: Preset, folder: Path, seed: int = 0) -> Path:
    """Write an initial bundle of ``preset`` into ``folder`` (which is made, and must be empty); returns ``folder``.

    Equal preset and seed give equal files.

    Raises:
        InputError: a source that is not there, or a folder that holds something.
        ConfigError: a component with neither source nor configuration.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError("the folder of a new bundle is not empty", value=str(folder), fix="choose another")
    folder.mkdir(parents=True, exist_ok=True)
    licences = ", ".join(f"{part} {licence}" for part, licence in preset.licences.items())
    log.info("a bundle of %s; licences of its weights: %s", preset.name, licences)
    if preset.notice is not None:
        log.warning("%s: %s", preset.name, preset.notice)
    # the aggregator comes last: it is made to fit the MLLM and the DiT that lie there by then
    for name in ("mllm", "vae", "transformer", "scheduler", "aggregator"):
        component, target = getattr(preset, name), folder / name
        if component.source is not None:
            where = {key: getattr(component, key, None) for key in ("revision", "subfolder")}
            fetch(component.source, target, **where)
        else:
            from lookalike.bundles import fresh

            fresh.MAKERS[name](preset, target, seed)
    _check_aggregator(preset, folder)
    write_model_index(folder)
    write_manifest(folder, preset)
    return folder


def fetch(source: str, target: Path, *, revision: str | None = None, subfolder: str | None = None) -> None:
    """Copy a component's files to ``target`` from ``package:…``, a local folder or a Hub id (at ``revision``).

    ``subfolder`` is the component's place inside the source.
    """
    if source.startswith("package:"):
        origin = ASSETS_DIR / source.removeprefix("package:")
    elif Path(source).is_dir():
        origin = Path(source)
    else:
        origin = _download(source, revision, subfolder)
    origin = origin / (subfolder or "")
    if not origin.is_dir():
        name = f"{source}/{subfolder}" if subfolder else source
        raise InputError("a component's source is not there", value=name, fix="check the preset's source")
    target.mkdir(parents=True)
    for pattern in _KEPT:
        for file in origin.glob(pattern):
            shutil.copyfile(file, target / file.name)


def write_model_index(folder: Path) -> None:
    """Write ``model_index.json``, by which a DiffusionPipeline finds the classes of its components."""
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
    """Check whose classes ``model_index.json`` names: diffusers would import any module that stands there.

    Raises:
        InputError: not such a file, or a class of a library that bundles are not made of.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        return  # the loader says so
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
                fix="download the bundle again, or make it anew",
            )


def _check_aggregator(preset: Preset, folder: Path) -> None:
    config = preset.aggregator
    found = component_config(folder, "aggregator", "kind")["kind"]
    if found != config.kind:
        raise ConfigError(
            f"aggregator.source holds a {found}, aggregator.kind says {config.kind}",
            value=config.source,
            fix="leave source out (or train from_seed), or name the kind that it holds",
        )


def _download(repository: str, revision: str | None, subfolder: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # a pattern matches in subfolders too, and the root of a pipeline may hold the same weights in one more file
    patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in _KEPT]
    unwanted = None if subfolder else ["*/*"]
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=unwanted)
        return Path(folder)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"no folder and no reachable Hub id: {error}", value=repository, fix="check the preset's source"
        ) from error
