"""Load weights tensor by tensor from transformers' and diffusers' formats; missing and unknown tensors are errors."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.models.components import NO_CODE, REPAIR
from lookalike.process_wide import alone_in_process

PARTS = ("mllm", "aggregator", "transformer")


def safetensors_files(folder: Path) -> list[Path]:
    """List the weight files of one component: those of its index, or its single file.

    Raises InputError if there is none, or one that the index names is missing.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        with decoding("an index of safetensors files", str(indices[0]), fix=REPAIR):
            names = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))[:1]
    for file in files:
        if not file.is_file():
            raise InputError("a weight file that the index names is missing", value=str(file), fix=REPAIR)
    if not files:
        raise InputError(
            "the component's folder has no safetensors file", value=str(folder), fix="save the weights as safetensors"
        )
    return files


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    from safetensors import safe_open

    with decoding("a safetensors file", str(file), fix=REPAIR), safe_open(file, framework="pt") as tensors:
        yield tensors


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the file, tensor) for every tensor of a component, one in memory at a time."""
    for file in safetensors_files(folder):
        with _open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                yield name, tensors.get_tensor(name)


def component_weights(bundle_dir: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (parameter name in ``SubjectModel``, tensor) for a bundle's joint encoder, aggregator and DiT.

    The language head of the MLLM is skipped: it is never called.
    """
    rename = _mllm_names(bundle_dir / "mllm")
    for part in PARTS:
        for name, tensor in read_tensors(bundle_dir / part):
            own = rename(name) if part == "mllm" else name
            if own is not None:
                yield f"{part}.{own}", tensor


def strict_weights(model: nn.Module, bundle_dir: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield :func:`component_weights` after checking each against ``model`` (a SubjectModel, sharded by ZeRO-3 or not).

    Raises InputError if a tensor is unknown or has another shape; or, at the end, if one is missing.
    """
    expected = {name: _shape(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    for name, tensor in component_weights(bundle_dir):
        if name not in expected:
            raise _mismatch(f"the tensor {name} is unknown or repeated", bundle_dir)
        if (shape := tuple(tensor.shape)) != expected[name]:
            raise _mismatch(f"{name} has shape {shape}, the configuration gives {expected[name]}", bundle_dir)
        yield name, tensor
        del expected[name]
    if expected:
        raise _mismatch(f"{len(expected)} tensors are missing, the first is {min(expected)}", bundle_dir)


def check_names(parts: Mapping[str, nn.Module], bundle_dir: Path) -> None:
    """Compare the tensor names of modules that a library has loaded, by component, with those in their files.

    transformers and diffusers only warn of a tensor that is missing (and initialise it at random) or unknown. Raises
    InputError for one.
    """
    for part, module in parts.items():
        rename = _mllm_names(bundle_dir / part) if part == "mllm" else str
        own: set[Any] = set()
        for file in safetensors_files(bundle_dir / part):
            with _open(file) as tensors:
                own.update(map(rename, tensors.keys()))
        own.discard(None)
        expected = module.state_dict().keys()
        for what, names in (("missing", expected - own), ("unknown", own - expected)):
            if names:
                raise _mismatch(f"{len(names)} tensors are {what}, the first is {part}.{min(names)}", bundle_dir)


def replace_mllm_weights(folder: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace ``weights``, by their names in the base model, in an MLLM's files; names and dtypes of the files stay.

    Returns:
        the tensors as they were written.
    """
    from safetensors.torch import save_file

    rename, written = _mllm_names(folder), {}
    for file in safetensors_files(folder):
        with _open(file) as opened:
            metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if (own := rename(name)) in weights:
                tensors[name] = written[own] = weights[own].to(tensor.dtype).contiguous()
        save_file(tensors, file, metadata)
    return written


def load_weights(model: nn.Module, bundle_dir: Path) -> None:
    """Copy a bundle's weights into ``model``; strict as :func:`strict_weights`."""
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in strict_weights(model, bundle_dir):
            own[name].copy_(tensor)


def _mismatch(what: str, bundle_dir: Path) -> InputError:
    return InputError(what, value=str(bundle_dir), fix="use the weights and the configuration of the same checkpoint")


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(getattr(tensor, "ds_shape", tensor.shape))  # under ZeRO-3 the local tensor is empty


@alone_in_process()
def _mllm_names(folder: Path) -> Any:
    """Return a function from names in an MLLM's files to names in its base model, None for tensors that it lacks."""
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    config = transformers.AutoConfig.from_pretrained(folder, **NO_CODE)
    model_class = getattr(transformers, (config.architectures or [""])[0], None)
    if model_class is None:
        raise InputError(
            "transformers has no class for the architectures in config.json", value=config.architectures, fix=REPAIR
        )
    with torch.device("meta"):
        full = model_class(config)
    prefix = "" if full.base_model is full else f"{full.base_model_prefix}."
    transforms = get_model_conversion_mapping(full)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if not isinstance(transform, WeightRenaming)]

    def rename(name: str) -> str | None:
        own, converter = rename_source_key(name, renamings, converters)
        if converter is not None:
            raise InputError(
                f"the tensor {name} needs a conversion that only transformers supports",
                value=str(folder),
                fix="load it with transformers and save it with save_pretrained(save_original_format=False)",
            )
        return own.removeprefix(prefix) if own.startswith(prefix) else None

    return rename
