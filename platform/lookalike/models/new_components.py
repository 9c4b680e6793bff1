"""Make components without a source from their configuration: with weights from a seed, or without weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from lookalike.errors import ConfigError
from lookalike.models.aggregate import LayerAggregator
from lookalike.models.components import NO_CODE, component_config
from lookalike.models.families import family_of
from lookalike.models.joint import num_layers
from lookalike.models.presets import MllmConfig, Preset, asset
from lookalike.models.tokenizer import build_tokenizer


def outline(preset: Preset, folder: Path) -> Path:
    """Write the configurations of the components of ``preset`` into ``folder``, without weights; returns ``folder``.

    They come from the preset's own ``config``, so nothing is downloaded. A model that is built from them under
    ``torch.device("meta")`` has the shapes of the real one: :mod:`lookalike.models.costs`.

    Raises:
        ConfigError: the preset has no ``config`` for a component.
    """
    for name in ("mllm", "vae", "transformer", "scheduler"):
        if not getattr(preset, name).config:
            raise ConfigError(
                f"the preset has no {name}.config, which gives the shapes",
                value=preset.name,
                fix="add it to the preset",
            )
    mllm = getattr(transformers, preset.mllm.architecture)
    mllm.config_class(**preset.mllm.config, architectures=[preset.mllm.architecture]).save_pretrained(folder / "mllm")
    with torch.device("meta"):
        diffusers.AutoencoderKL(**preset.vae.config).save_config(folder / "vae")
        diffusers.FluxTransformer2DModel(**preset.transformer.config).save_config(folder / "transformer")
        diffusers.FlowMatchEulerDiscreteScheduler(**preset.scheduler.config).save_config(folder / "scheduler")
        _new_aggregator(preset, folder).save_config(folder / "aggregator")
    return folder


def init_flux(transformer: nn.Module) -> None:
    """Initialise a DiT for training from scratch: adaLN-Zero (arXiv 2212.09748).

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
    if not config.config or config.vocabulary is None:
        raise ConfigError(
            "mllm has neither a source nor both config and vocabulary", value=preset.name, fix="correct the preset"
        )
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
    words = asset(str(config.vocabulary)).read_text().split()
    return build_tokenizer(words, int(config.config["text_config"]["vocab_size"]))


def _vae(preset: Preset, target: Path, seed: int) -> None:
    with _seeded(seed):
        diffusers.AutoencoderKL(**_described(preset, "vae")).save_pretrained(target)


def _transformer(preset: Preset, target: Path, seed: int) -> None:
    with _seeded(seed):
        model = diffusers.FluxTransformer2DModel(**_described(preset, "transformer"))
        init_flux(model)
    model.save_pretrained(target)


def _scheduler(preset: Preset, target: Path, seed: int) -> None:
    diffusers.FlowMatchEulerDiscreteScheduler(**preset.scheduler.config).save_pretrained(target)


def _aggregator(preset: Preset, target: Path, seed: int) -> None:
    with _seeded(seed):
        _new_aggregator(preset, target.parent).save_pretrained(target)


MAKERS: dict[str, Callable[[Preset, Path, int], None]] = {
    "mllm": _mllm,
    "vae": _vae,
    "transformer": _transformer,
    "scheduler": _scheduler,
    "aggregator": _aggregator,
}
"""Writes each component: (preset, target folder, seed). Raises ConfigError if the preset has no ``config`` for it."""


def _described(preset: Preset, name: str) -> dict[str, Any]:
    config: dict[str, Any] = getattr(preset, name).config
    if not config:
        raise ConfigError(f"{name} has neither source nor config", value=preset.name, fix="correct the preset")
    return config


def _new_aggregator(preset: Preset, folder: Path) -> LayerAggregator:
    """Make an aggregator that fits the MLLM and the DiT whose configurations are in ``folder``."""
    config, mllm = preset.aggregator, transformers.AutoConfig.from_pretrained(folder / "mllm", **NO_CODE)
    aggregator: LayerAggregator = LayerAggregator(
        kind=config.kind,
        num_layers=num_layers(mllm),
        mllm_width=mllm.get_text_config().hidden_size,
        out_width=component_config(folder, "transformer", "joint_attention_dim")["joint_attention_dim"],
        inner_width=config.inner_width,
        head_dim=config.head_dim,
        layer_blocks=config.layer_blocks,
        refiner_blocks=config.refiner_blocks,
    )
    return aggregator


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
