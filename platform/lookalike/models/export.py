"""From trained weights by name to a bundle that others load."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lookalike.errors import InputError
from lookalike.models.adapters import save_lora
from lookalike.models.bundle import ADAPTER, COMPONENTS, Base, open_bundle, write_manifest
from lookalike.models.presets import LoraConfig, Preset
from lookalike.models.weights import read_tensors

_TRAINED = ("aggregator", "transformer")


def export_bundle(initial_dir: Path, target: Path, trained: Mapping[str, Tensor]) -> Path:
    """Write a full bundle: ``initial_dir`` with the tensors of ``trained`` in place of its own.

    Args:
        initial_dir: the bundle that training started from.
        target: a new folder.
        trained: tensors by parameter name in ``SubjectModel`` (``transformer.…``, ``aggregator.…``); what is not named
            is copied. Tensors keep the initial dtype.

    Raises:
        InputError: a name that the initial bundle does not hold, another shape, or a part that is frozen.
    """
    opened = open_bundle(initial_dir)
    left = dict(trained)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(initial_dir / "model_index.json", target / "model_index.json")
    for part in COMPONENTS:
        if any(name.startswith(f"{part}.") for name in trained):
            _write_part(initial_dir, target, part, left)
        else:
            shutil.copytree(initial_dir / part, target / part)
    if left:
        raise InputError(f"the bundle has no tensor {min(left)}", value=str(initial_dir), fix="export what it holds")
    write_manifest(target, opened.preset)
    return target


def export_adapter(target: Path, preset: Preset, lora: LoraConfig, trained: Mapping[str, Tensor], base: Base) -> Path:
    """Write a personal bundle: the LoRA alone, and the base that it sits on.

    Args:
        target: a new folder.
        preset: the base's preset.
        lora: the settings that the adapter was made with.
        trained: LoRA tensors by parameter name in ``SubjectModel`` (``transformer.….lora_A.default.weight``).
        base: where the base is, and its identity.
    """
    weights = {name.removeprefix("transformer."): tensor for name, tensor in trained.items()}
    save_lora(target / ADAPTER, lora, weights)
    write_manifest(target, preset, base)
    return target


def _write_part(initial_dir: Path, target: Path, part: str, left: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    if part not in _TRAINED:
        raise InputError("export of a part that does not train", value=part, fix=f"train one of {', '.join(_TRAINED)}")
    tensors: dict[str, Tensor] = {}
    for name, initial in read_tensors(initial_dir / part):
        tensor = left.pop(f"{part}.{name}", initial)
        if tensor.shape != initial.shape:
            raise InputError(
                f"{part}.{name} has shape {tuple(tensor.shape)}, the bundle {tuple(initial.shape)}",
                value=str(initial_dir),
                fix="gather the weights on every rank",
            )
        tensors[name] = tensor.detach().to("cpu", initial.dtype).contiguous()
    (target / part).mkdir()
    shutil.copyfile(initial_dir / part / "config.json", target / part / "config.json")
    save_file(tensors, target / part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
