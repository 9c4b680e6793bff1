"""Make components without a source from their configuration: with weights from a seed, or without weights."""

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
from lookalike.models.presets import Preset, asset
from lookalike.models.tokenizer import build_tokenizer
from lookalike.process_wide import alone_in_process

_CLASSES = {
    "vae": diffusers.AutoencoderKL,
    "transformer": diffusers.FluxTransformer2DModel,
    "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
}


@alone_in_process()
def outline(preset: Preset, folder: Path) -> Path:
    """Write the configurations of the components of ``preset`` into ``folder``, without weights; returns ``folder``.

    They come from the preset's own ``config``, so nothing is downloaded. A model that is built from them under
    ``torch.device("meta")`` has the shapes of the real one: :mod:`lookalike.models.costs`. Raises ConfigError if the
    preset has no ``config`` for a component.
    """
    for name in ("mllm", "vae", "transformer", "scheduler"):
        if not getattr(preset, name).config:
            what = f"the preset has no {name}.config, which gives the shapes"
            raise ConfigError(what, value=preset.name, fix="add it to the preset")
    mllm = getattr(transformers, preset.mllm.architecture)
    mllm.config_class(**preset.mllm.config, architectures=[preset.mllm.architecture]).save_pretrained(folder / "mllm")
    with torch.device("meta"):
        for name in ("vae", "transformer", "scheduler", "aggregator"):
            _of_diffusers(name, preset, folder).save_config(folder / name)
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


@alone_in_process()
def make_component(name: str, preset: Preset, folder: Path, seed: int) -> None:
    """Write the component ``name`` of ``preset`` below ``folder``, with weights from ``seed``; the aggregator last.

    Raises ConfigError if the preset has no ``config`` for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        component = _mllm(preset, folder) if name == "mllm" else _of_diffusers(name, preset, folder)
    component.save_pretrained(folder / name)


def _mllm(preset: Preset, folder: Path) -> Any:
    """Make the MLLM, and write its tokenizer and image processor."""
    config = preset.mllm
    if not config.config or config.vocabulary is None:
        raise ConfigError(
            "mllm has neither a source nor both config and vocabulary", value=preset.name, fix="correct the preset"
        )
    words = asset(config.vocabulary).read_text().split()
    tokenizer = build_tokenizer(words, int(config.config["text_config"]["vocab_size"]))
    tokenizer.save_pretrained(folder / "mllm")
    model_class = getattr(transformers, config.architecture)
    image_token_id = tokenizer.convert_tokens_to_ids(config.image_token)
    model = model_class(model_class.config_class(**{**config.config, "image_token_id": image_token_id}))
    values = model.config.to_dict()
    family_of(model.config.model_type).image_processor(values, config).save_pretrained(folder / "mllm")
    return model


@alone_in_process()
def _of_diffusers(name: str, preset: Preset, folder: Path) -> Any:
    """Make the component ``name``; the aggregator fits the MLLM and the DiT whose configurations are in ``folder``."""
    if name == "aggregator":
        config, mllm = preset.aggregator, transformers.AutoConfig.from_pretrained(folder / "mllm", **NO_CODE)
        return LayerAggregator(
            kind=config.kind,
            num_layers=num_layers(mllm),
            mllm_width=mllm.get_text_config().hidden_size,
            out_width=component_config(folder, "transformer", "joint_attention_dim")["joint_attention_dim"],
            inner_width=config.inner_width,
            head_dim=config.head_dim,
            layer_blocks=config.layer_blocks,
            refiner_blocks=config.refiner_blocks,
        )
    values = getattr(preset, name).config
    if not values and name != "scheduler":
        raise ConfigError(f"{name} has neither source nor config", value=preset.name, fix="correct the preset")
    component = _CLASSES[name](**values)
    if name == "transformer":
        init_flux(component)
    return component
