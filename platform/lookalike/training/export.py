"""The bundle that comes out of a run: the initial one with a checkpoint's weights."""

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from lookalike.errors import LookalikeError
from lookalike.models import bundle as bundles
from lookalike.models.adapters import save_lora
from lookalike.models.presets import LoraConfig, load_preset
from lookalike.models.subject import Part, SubjectModel
from lookalike.storage import Store
from lookalike.training import checkpoint
from lookalike.training.bundles import (
    BUNDLE,
    INITIAL,
    BundleReference,
    finished_bundle,
    local_bundle,
    reference,
    upload_bundle,
)
from lookalike.training.config import TrainConfig


def adapter_of(config: TrainConfig) -> LoraConfig | None:
    """The LoRA that this run trains: its own, else the preset's; None trains the DiT itself."""
    return config.adapter or (None if config.base else load_preset(config.preset).lora)


def trainable_parts(config: TrainConfig) -> tuple[Part, ...]:
    """Names for :meth:`SubjectModel.trainable`: a personal adapter learns alone; a base run also trains the bridge."""
    if config.adapter is not None:
        return ("transformer_lora",)
    return ("aggregator", "transformer_lora" if adapter_of(config) else "transformer")


def export_bundle(config: TrainConfig, store: Store, step: int) -> BundleReference:
    """The initial bundle with a checkpoint's weights, saved in the libraries' formats, read back and compared.

    A run with ``config.adapter`` gives a personal bundle: the peft folder alone, and its base by URI and hash.
    """
    target = store.child(BUNDLE)
    if (done := finished_bundle(store)) is not None:
        return done
    initial_uri = config.base or store.child(INITIAL).uri
    initial = local_bundle(initial_uri)
    _, tensors = checkpoint.load(store.child(checkpoint.CHECKPOINTS), step)
    weights = checkpoint.trained_weights(tensors)

    with tempfile.TemporaryDirectory(prefix="lookalike-export-") as name:
        folder = Path(name)
        preset = bundles.read_preset(initial)
        base = None
        if config.adapter is not None:
            found = reference(initial_uri)
            base = bundles.Base(found.uri, found.sha256)
        else:
            shutil.copytree(initial, folder, dirs_exist_ok=True)
        _save_trained(config, initial, weights, folder)
        bundles.write_manifest(folder, preset, base)
        _verify(folder, initial if base else None, weights)
        upload_bundle(folder, target)
    return reference(target.uri)


def _save_trained(config: TrainConfig, initial: Path, weights: dict[str, Tensor], folder: Path) -> None:
    """Write the parts that learned, each in its library's format, over what the initial bundle holds."""
    model = SubjectModel.from_bundle(initial)
    adapter, parts = adapter_of(config), trainable_parts(config)
    if adapter is not None:
        model.add_lora(adapter)
    named = model.trainable(parts)
    if differing := sorted(set(named) ^ set(weights)):
        raise LookalikeError(
            "the checkpoint does not fit the model", value=differing[0], fix="export with the run's own configuration"
        )
    if adapter is not None:
        lora = {name.removeprefix("transformer."): tensor for name, tensor in weights.items() if ".lora_" in name}
        save_lora(folder / bundles.ADAPTER, adapter, lora)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    for part in ("aggregator", "transformer"):
        if part in parts:
            trained = getattr(model, part)
            (trained.half() if config.export_dtype == "float16" else trained).save_pretrained(folder / part)


def _verify(folder: Path, base: Path | None, weights: dict[str, Tensor]) -> None:
    """Read the bundle back as a user would: all tensors there, none empty or all zero, values as trained."""
    bundles.verify(folder)
    found = dict(SubjectModel.from_bundle(folder, base).named_parameters())
    for name, expected in weights.items():
        if name not in found:
            raise LookalikeError("a trained tensor is missing in the export", value=name, fix="report this as a bug")
        if expected.numel() == 0 or not torch.isfinite(expected).all():
            raise LookalikeError("a trained tensor is empty or not finite", value=name, fix="look at the losses")
        torch.testing.assert_close(found[name].float(), expected, rtol=1e-3, atol=1e-5)
    if not any(bool(tensor.any()) for tensor in weights.values()):
        raise LookalikeError("every trained tensor is zero", fix="look at the losses: nothing was learned")
