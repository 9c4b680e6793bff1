"""From a preset to an initial bundle: components copied from their sources, or made from a seed."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lookalike.errors import ConfigError, InputError
from lookalike.models.aggregate import LayerAggregator
from lookalike.models.bundle import write_manifest
from lookalike.models.families import family_of
from lookalike.models.joint import base_class_name, num_layers
from lookalike.models.presets import PRESETS_DIR, ComponentConfig, MllmConfig, Preset
from lookalike.models.tokenizer import build_tokenizer

log = logging.getLogger(__name__)

WEIGHTS_DIR = Path(__file__).parent / "weights"
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
    _mllm(preset, folder / "mllm", seed)
    _diffusers_model("AutoencoderKL", preset.vae, folder / "vae", seed)
    _diffusers_model("FluxTransformer2DModel", preset.transformer, folder / "transformer", seed, init_flux)
    _scheduler(preset.scheduler, folder / "scheduler")
    _aggregator(preset, folder, seed)
    _model_index(preset, folder)
    write_manifest(folder, preset)
    return folder


def outline(preset: Preset, folder: Path) -> Path:
    """Write what a bundle of ``preset`` has beside its weights, into ``folder`` (which is made); returns it.

    Every component is described by the preset's own ``config``, so nothing is downloaded. Built under
    ``torch.device("meta")`` it has the shapes of the real model: :mod:`lookalike.models.costs`.

    Raises:
        ConfigError: a component without the configuration that would describe it.
    """
    import diffusers
    import transformers

    for name in ("mllm", "vae", "transformer", "scheduler"):
        if not getattr(preset, name).config:
            raise ConfigError(
                f"{name} has no config to tell its shape by", value=preset.name, fix="add it to the preset"
            )
    mllm = getattr(transformers, preset.mllm.architecture)
    mllm.config_class(**preset.mllm.config, architectures=[preset.mllm.architecture]).save_pretrained(folder / "mllm")
    with torch.device("meta"):
        diffusers.AutoencoderKL(**preset.vae.config).save_config(folder / "vae")
        diffusers.FluxTransformer2DModel(**preset.transformer.config).save_config(folder / "transformer")
        diffusers.FlowMatchEulerDiscreteScheduler(**preset.scheduler.config).save_config(folder / "scheduler")
        _new_aggregator(preset, folder).save_config(folder / "aggregator")
    _model_index(preset, folder)
    write_manifest(folder, preset)
    return folder


def fetch(source: str, target: Path, *, revision: str | None = None, subfolder: str | None = None) -> None:
    """Copy a component's files to ``target`` from ``package:…``, a local folder or a Hub id (at ``revision``).

    ``subfolder`` is the component's place inside the source.
    """
    if source.startswith("package:"):
        origin = WEIGHTS_DIR / source.removeprefix("package:")
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


def init_flux(transformer: nn.Module) -> None:
    """Initial weights of a DiT trained from scratch: adaLN-Zero (arXiv 2212.09748).

    Every block starts as the identity and the output is zero, so the first gradients are those of a linear model.
    """
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            modulation = name.endswith(".linear") and ".norm" in f".{name}"
            if modulation or name in ("proj_out", "norm_out.linear"):
                nn.init.zeros_(module.weight)
            elif name.startswith("time_text_embed"):
                nn.init.normal_(module.weight, std=0.02)


def _mllm(preset: Preset, target: Path, seed: int) -> None:
    config = preset.mllm
    if config.source is not None:
        fetch(config.source, target, revision=config.revision)
        return
    import transformers

    if not config.config or config.vocabulary is None:
        raise ConfigError("mllm has no source; it needs config and vocabulary", fix="mend the preset")
    model_class = getattr(transformers, config.architecture)
    tokenizer = _tokenizer(config)
    values = {**config.config, "image_token_id": tokenizer.convert_tokens_to_ids(config.image_token)}
    model_config = model_class.config_class(**values)
    with _seeded(seed):
        model = model_class(model_config)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    family_of(model_config.model_type).image_processor(model_config.to_dict(), config).save_pretrained(target)


def _tokenizer(config: MllmConfig) -> Any:
    words = (PRESETS_DIR / str(config.vocabulary)).read_text().split()
    return build_tokenizer(words, int(config.config["text_config"]["vocab_size"]))


def _diffusers_model(
    class_name: str,
    config: ComponentConfig,
    target: Path,
    seed: int,
    init: Callable[[nn.Module], None] | None = None,
) -> None:
    if config.source is not None:
        fetch(config.source, target, revision=config.revision, subfolder=config.subfolder)
        return
    import diffusers

    if not config.config:
        raise ConfigError(f"{target.name} has neither source nor config", fix="mend the preset")
    with _seeded(seed):
        model = getattr(diffusers, class_name)(**config.config)
        if init is not None:
            init(model)
    model.save_pretrained(target)


def _scheduler(config: ComponentConfig, target: Path) -> None:
    if config.source is not None:
        fetch(config.source, target, revision=config.revision, subfolder=config.subfolder)
        return
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(**config.config).save_pretrained(target)


def _aggregator(preset: Preset, folder: Path, seed: int) -> None:
    config = preset.aggregator
    if config.source is not None:
        fetch(config.source, folder / "aggregator")
        found = json.loads((folder / "aggregator" / "config.json").read_text())["kind"]
        if found != config.kind:
            raise ConfigError(
                f"aggregator.source holds a {found}, aggregator.kind says {config.kind}",
                value=config.source,
                fix="leave source out (or train from_seed), or name the kind that it holds",
            )
        return
    with _seeded(seed):
        _new_aggregator(preset, folder).save_pretrained(folder / "aggregator")


def _new_aggregator(preset: Preset, folder: Path) -> LayerAggregator:
    """One that fits the MLLM and the DiT that ``folder`` describes."""
    from transformers import AutoConfig

    config, mllm = preset.aggregator, AutoConfig.from_pretrained(folder / "mllm")
    aggregator: LayerAggregator = LayerAggregator(
        kind=config.kind,
        num_layers=num_layers(mllm),
        mllm_width=mllm.get_text_config().hidden_size,
        out_width=json.loads((folder / "transformer" / "config.json").read_text())["joint_attention_dim"],
        inner_width=config.inner_width,
        head_dim=config.head_dim,
        layer_blocks=config.layer_blocks,
        refiner_blocks=config.refiner_blocks,
    )
    return aggregator


def _model_index(preset: Preset, folder: Path) -> None:
    import diffusers

    index = {
        "_class_name": "SubjectPipeline",
        "_diffusers_version": diffusers.__version__,
        "mllm": ["transformers", base_class_name(folder / "mllm")],
        "vae": ["diffusers", "AutoencoderKL"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "aggregator": [LayerAggregator.__module__, LayerAggregator.__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from ``seed``, and leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
