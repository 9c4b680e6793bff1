"""A slice of the paper's system: its widths and classes in one block of each kind, random weights, small images."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import FluxTransformer2DModel

from lookalike.models.presets import Preset, load_preset

PIXELS = 128
"""Side of target and references: 64 tokens each, where the paper's 512 give 1,024."""
TILE = 112
"""Side of what the MLLM reads of a reference: 16 tokens, where the paper's 448 give 256."""


def slice_of(folder: Path, pixels: int = PIXELS) -> Path:
    """Write a preset of one double and one single block, one layer of the language model and one of its vision tower,
    and the DiT's weights; returns the preset's file.

    The DiT's output is not initialised to zero, as for training from scratch, since a LoRA is trained here.
    """
    paper = load_preset("flux-internvl3-8b")
    transformer = {**paper.transformer.config, "num_layers": 1, "num_single_layers": 1}
    torch.manual_seed(0)
    FluxTransformer2DModel(**transformer).save_pretrained(folder / "transformer", max_shard_size="500MB")
    mllm = _with(paper.mllm.config, "vision_config", num_hidden_layers=1, image_size=[TILE, TILE])
    mllm = _with(mllm, "text_config", num_hidden_layers=1, vocab_size=2048, max_position_embeddings=256)
    tokens = (TILE // 28) ** 2
    preset = dataclasses.replace(
        paper,
        name="paper-slice",
        notice=None,
        height=pixels,
        width=pixels,
        mllm=dataclasses.replace(
            paper.mllm,
            source=None,
            revision=None,
            config={**mllm, "image_seq_length": tokens},
            vocabulary="mini.words.txt",
            template="<|im_start|>{images}{prompt}<|im_end|>",
            image_suffix="</img>",
            image_size=TILE,
            tokens_per_image=tokens,
        ),
        vae=dataclasses.replace(paper.vae, source=None, subfolder=None, revision=None),
        transformer=dataclasses.replace(
            paper.transformer, source=str(folder / "transformer"), subfolder=None, revision=None, config=transformer
        ),
        references=dataclasses.replace(paper.references, max_references=1, height=pixels, width=pixels),
    )
    file = folder / "paper-slice.yaml"
    file.write_text(yaml.safe_dump(_plain(preset)))
    return file


def _with(config: dict[str, Any], part: str, **changes: Any) -> dict[str, Any]:
    return {**config, part: {**config[part], **changes}}


def _plain(preset: Preset) -> Any:
    """``value`` as plain mappings and lists, for YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(preset))
