"""Personal bundles whose adapters are random: as different from one another as adapters can be."""

from functools import lru_cache
from pathlib import Path

import torch

from lookalike.bundles.load import load_model
from lookalike.bundles.manifest import (
    ADAPTER,
    BundleReference,
    bundle_sha256,
    read_manifest,
    read_preset,
    write_manifest,
)
from lookalike.models.adapters import save_lora
from lookalike.models.presets import LoraConfig
from lookalike.models.stacked_lora import new_adapter
from lookalike.models.subject import SubjectModel


def personal_bundle(
    base: Path, folder: Path, seed: int, *, lora: LoraConfig | None = None, scale: float = 0.1, owner: str | None = None
) -> Path:
    """Write a bundle at ``folder`` with a LoRA of normally distributed weights of deviation ``scale``, on ``base``."""
    lora = lora or LoraConfig(rank=4)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name.removeprefix("transformer."): scale * torch.randn(parameter.shape, generator=generator)
        for name, parameter in new_adapter(_model(base), lora, seed).parameters.items()
    }
    save_lora(folder / ADAPTER, lora, weights)
    reference = BundleReference(str(base), bundle_sha256(read_manifest(base)))
    write_manifest(folder, read_preset(base), reference, owner)
    return folder


@lru_cache(maxsize=1)
def _model(base: Path) -> SubjectModel:
    model = load_model(base)
    model.transformer.unload_lora()  # type: ignore[operator]
    return model
