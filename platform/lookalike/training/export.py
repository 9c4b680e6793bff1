"""Export a run's bundle: the initial one with a checkpoint's weights."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lookalike.bundles.load import load_model
from lookalike.bundles.manifest import ADAPTER, BundleReference, read_preset, write_manifest
from lookalike.bundles.transfer import local_bundle, upload_bundle, verified_reference
from lookalike.bundles.verification import verify
from lookalike.errors import LookalikeError
from lookalike.models.adapters import merge_mllm_lora, save_lora
from lookalike.models.dit import Context, References
from lookalike.models.subject import SubjectModel
from lookalike.models.weights import replace_mllm_weights
from lookalike.scratch import scratch
from lookalike.storage import Store
from lookalike.training import checkpoint
from lookalike.training.config import TrainConfig
from lookalike.training.optimizer import STATE_NAMES
from lookalike.training.run_bundles import BUNDLE, INITIAL, finished_bundle
from lookalike.training.trainable import adapter_of, add_loras, mllm_lora_of, trainable_parts

_TOLERANCE = 1e-3  # relative, of weights; float16 has 11 significant bits
_OUTPUT_TOLERANCE = {"float32": 1e-3, "float16": 1e-2}  # errors of rounded weights add up: `mini` has 1.6e-3
_BUG = "report this as a bug"


def export_bundle(
    config: TrainConfig, store: Store, step: int, check: Callable[[], None] = lambda: None
) -> BundleReference:
    """Save the initial bundle with a checkpoint's weights in the libraries' formats, read it back and compare it.

    A run with ``config.adapter`` exports a personal bundle (the peft folder, and its base by URI and hash), unless
    ``config.export_lora`` is ``merged``. ``check`` is the run's lease's: it raises if the lease was lost.

    Raises LookalikeError if the written tensors or outputs differ from the trained ones, or nothing was trained.
    """
    target = store.child(BUNDLE)
    if (done := finished_bundle(store)) is not None:
        return done
    initial_uri = config.base or store.child(INITIAL).uri
    initial = local_bundle(initial_uri)
    _, tensors = checkpoint.load(store.child(checkpoint.CHECKPOINTS), step, without=STATE_NAMES)
    weights = checkpoint.trained_weights(tensors)
    del tensors
    _check_trained(weights)

    with scratch("export") as folder:
        preset = read_preset(initial)
        base = None
        if config.adapter is not None and config.export_lora == "separate":
            base = verified_reference(initial_uri)
        else:
            shutil.copytree(initial, folder, dirs_exist_ok=True)
        expected, merged = _save_trained(config, initial, weights, folder)
        write_manifest(folder, preset, base, config.owner)
        _verify(config, folder, initial if base else None, {**weights, **merged}, expected)
        upload_bundle(folder, target, check)
    return verified_reference(target.uri)


def _check_trained(weights: Mapping[str, Tensor]) -> None:
    """Raise LookalikeError for weights that no training run produces: empty, not finite, or all zero."""
    look = "look at the run's losses"
    for name, tensor in weights.items():
        if tensor.numel() == 0 or not torch.isfinite(tensor).all():
            fix = f"{look}; the training run diverged"
            raise LookalikeError("a trained tensor is empty or not finite", value=name, fix=fix)
        if not tensor.any():
            raise LookalikeError("a trained tensor is all zero", value=name, fix=f"{look}; this part learned nothing")


def _trained_model(config: TrainConfig, initial: Path, weights: Mapping[str, Tensor]) -> SubjectModel:
    """Load the initial bundle's model, with the run's LoRA if it trains one, and the checkpoint's weights; strict."""
    model = load_model(initial)
    add_loras(config, model)
    named = model.set_trainable(trainable_parts(config))
    if differing := sorted(set(named) ^ set(weights)):
        what = "the checkpoint does not have the trained tensors of the model"
        raise LookalikeError(what, value=differing[0], fix="export with the run's own configuration")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    return model.eval()


def _save_trained(
    config: TrainConfig, initial: Path, weights: Mapping[str, Tensor], folder: Path
) -> tuple[Tensor, dict[str, Tensor]]:
    """Write the trained parts, each in its library's format, in place of the initial bundle's.

    Returns the trained model's :func:`_output` and the MLLM's weights with its LoRA merged in.
    """
    model = _trained_model(config, initial, weights)
    expected = _output(model)
    adapter, transformer = adapter_of(config), cast(Any, model.transformer)
    changed = [part for part in ("aggregator", "transformer") if part in trainable_parts(config)]
    if adapter is not None and config.export_lora == "merged":
        transformer.fuse_lora()
        transformer.unload_lora()
        changed.append("transformer")
    elif adapter is not None:
        prefix = "transformer."
        lora = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix) and ".lora_" in n}
        save_lora(folder / ADAPTER, adapter, lora)
    for part in changed:
        shutil.rmtree(folder / part)  # the initial weights may lie in more files
        trained = getattr(model, part)
        (trained.half() if config.export_dtype == "float16" else trained).save_pretrained(folder / part)
    merged = replace_mllm_weights(folder / "mllm", merge_mllm_lora(model.mllm)) if mllm_lora_of(config) else {}
    return expected, {f"mllm.{name}": tensor.float() for name, tensor in merged.items()}


@torch.no_grad()
def _output(model: SubjectModel) -> Tensor:
    """Compute aggregator and DiT on fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    config, channels = model.aggregator.config, cast(Any, model.transformer).config.in_channels
    layers = [torch.randn(1, 8, config.mllm_width, generator=generator) for _ in range(config.num_layers)]
    mask = torch.ones(1, 8, dtype=torch.bool)
    context = Context(model.aggregator(layers, mask, torch.arange(8)[None] < 4, 4), mask)
    noisy, latents = (torch.randn(1, *shape, channels, generator=generator) for shape in ((16,), (1, 16)))
    references = References(latents, torch.ones(1, 1, dtype=torch.bool), (4, 4))
    return model.denoise(noisy, torch.tensor([0.5]), context, references, grid=(4, 4))


def _verify(
    config: TrainConfig, folder: Path, base: Path | None, weights: Mapping[str, Tensor], expected: Tensor
) -> None:
    """Read the bundle back as a user does, and compare its tensors and outputs with the trained ones."""
    verify(folder)
    model = load_model(folder, base)
    found = dict(model.named_parameters())
    for name, value in weights.items():
        if ".lora_" in name and (config.export_lora == "merged" or name.startswith("mllm.")):
            continue
        if name not in found:
            raise LookalikeError("a trained tensor is missing in the export", value=name, fix=_BUG)
        if not torch.allclose(found[name].float(), value, rtol=_TOLERANCE, atol=1e-5):
            raise LookalikeError("a trained tensor has other values in the export", value=name, fix=_BUG)
    difference, size = float((_output(model) - expected).norm()), float(expected.norm())
    if not difference <= _OUTPUT_TOLERANCE[config.export_dtype] * size:
        what = f"the exported model's output differs from the trained one's by {difference:.1e} of {size:.1e}"
        raise LookalikeError(what, fix=_BUG)
