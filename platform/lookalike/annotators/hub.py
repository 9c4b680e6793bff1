"""Load models of transformers by Hub id or folder (``id@revision`` pins one), and identify their weights."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike.errors import ConfigError, first_line
from lookalike.models.components import NO_CODE
from lookalike.process_wide import alone_in_process

if TYPE_CHECKING:
    import torch

_PROBES = ((96, 64), (64, 96))  # height and width of images, px


def split_pin(name_or_path: str) -> tuple[str, str | None]:
    """Split ``id@revision`` into Hub id and revision; a folder has none."""
    if Path(name_or_path).is_dir():
        return name_or_path, None
    name, _, pinned = name_or_path.partition("@")
    return name, pinned or None


@alone_in_process()
def model_revision(name_or_path: str, kind: str = "model") -> str:
    """Return the identity of a model's weights: the commit on the Hub, or a hash of the folder's files.

    Raises ConfigError if there is no such model; ``kind`` is its name in the message.
    """
    from transformers import AutoConfig

    name, pinned = split_pin(name_or_path)
    try:
        config = AutoConfig.from_pretrained(name, revision=pinned, **NO_CODE)
    except (OSError, ValueError) as error:
        raise no_such_model(kind, name_or_path, error) from error
    if not Path(name).is_dir():
        return f"{name}@{getattr(config, '_commit_hash', None) or pinned}"
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(name).iterdir() if p.suffix in (".safetensors", ".json")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{Path(name).name}@{digest.hexdigest()[:16]}"


def pinned(name_or_path: str, kind: str = "model") -> str:
    """Return ``id@commit`` of a model on the Hub, as it is now; a folder stays as it is.

    A job that resolves the name once, and gives its workers the result, runs one revision on all of them. Raises
    ConfigError as :func:`model_revision` does.
    """
    return name_or_path if Path(name_or_path).is_dir() else model_revision(name_or_path, kind)


def fixed_shape(processor: Any, **inputs: Any) -> bool:
    """Return whether a processor makes tensors of the same shapes for images of any size; ``inputs`` are its texts.

    Only then can images share a batch: padding would make the result of one depend on those beside it.
    """
    shapes = []
    for height, width in _PROBES:
        made = processor(images=[np.zeros((height, width, 3), np.uint8)], return_tensors="pt", **inputs)
        shapes.append({name: tuple(value.shape) for name, value in made.items() if hasattr(value, "shape")})
    return shapes[0] == shapes[1]


def pixels_of(processor: Any, images: Sequence[np.ndarray], together: bool) -> "Iterator[torch.Tensor]":
    """Yield uint8 RGB images ``[H, W, 3]`` as a model's float pixels ``[B, C, h, w]``: in one batch, or one by one."""
    for group in [images] if together else [[image] for image in images]:
        yield processor(images=list(group), return_tensors="pt")["pixel_values"]


@alone_in_process()
def load_model(
    kind: str, name_or_path: str, processor_class: Any, model_class: Any, device: str, others: tuple[str, ...] = ()
) -> tuple[Any, Any]:
    """Load a processor and a frozen model in float32, whatever the dtype of the checkpoint, on ``device``.

    Images are preprocessed by PIL, also where torchvision is installed, whose results differ. Raises ConfigError if
    there is no such model, or as :func:`load_weights` does; ``kind`` and ``others`` (other valid names) are for its
    message.
    """
    name, pinned = split_pin(name_or_path)
    try:
        processor = processor_class.from_pretrained(name, revision=pinned, backend="pil", **NO_CODE)
    except (ImportError, OSError, ValueError) as error:
        raise no_such_model(kind, name_or_path, error, others) from error
    return processor, load_weights(kind, name_or_path, model_class, device, others, optional=("pooler",))[0]


@alone_in_process()
def load_weights(
    kind: str,
    name_or_path: str,
    model_class: Any,
    device: str,
    others: tuple[str, ...] = (),
    *,
    optional: tuple[str, ...] = (),
) -> tuple[Any, list[str]]:
    """Load a frozen model in float32 on ``device``: the model, and the names of ``optional`` weights that it lacks.

    A weight that the checkpoint lacks would be random, so it is an error (ConfigError with its name), unless a part of
    its name is one of ``optional``. Raises ConfigError if there is no such model.
    """
    import torch

    name, pinned = split_pin(name_or_path)
    try:
        options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True} | NO_CODE
        model, info = model_class.from_pretrained(name, revision=pinned, **options)
    except (ImportError, OSError, ValueError) as error:
        raise no_such_model(kind, name_or_path, error, others) from error
    missing = sorted(info["missing_keys"])
    needed = [weight for weight in missing if not set(optional) & set(weight.split("."))]
    if needed:
        raise ConfigError(
            f"the {kind} lacks weights that its class needs: {needed[0]} ({len(needed)} missing)",
            value=name_or_path,
            fix="name a complete checkpoint of such a model",
        )
    return model.eval().requires_grad_(False).to(device), missing


def no_such_model(kind: str, name_or_path: str, error: Exception, others: tuple[str, ...] = ()) -> ConfigError:
    """Make the error for a name that is not a model; ``others`` are valid names."""
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"the {kind} needs code from its repository, which is never run",
            value=name_or_path,
            fix="use a model whose class is part of transformers",
        )
    fix = f"use {f'one of {list(others)}, ' if others else ''}a folder, or a Hub id of such a model of transformers"
    return ConfigError(f"there is no such {kind} ({first_line(error)})", value=name_or_path, fix=fix)
