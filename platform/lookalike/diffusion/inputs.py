"""Check and convert the arguments of a pipeline's call before anything is computed."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lookalike.diffusion.sampler import Negative
from lookalike.errors import ConfigError, InputError
from lookalike.models.limits import MAX_SIDE
from lookalike.pixels import to_rgb

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_size(height: int, width: int, multiple: int) -> None:
    """Raise ConfigError unless both are whole multiples of the pixels of one token, and at most MAX_SIDE."""
    for side in (height, width):
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < multiple or side % multiple:
            raise ConfigError(
                f"an image size of {width}x{height} pixels is not supported", fix=f"use multiples of {multiple}"
            )
        if side > MAX_SIDE:
            raise ConfigError(
                f"an image of {width}x{height} pixels is too large", fix=f"use at most {MAX_SIDE} pixels a side"
            )


def check_count(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"{name} is not a whole number of 1 or more", value=value, fix=f"use {name}=1 or more")


def check_number(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise ConfigError(f"{name} is not a finite number", value=value, fix=f"use a number, such as {name}=2.5")


def check_one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"unknown {name}", value=value, fix=f"use one of {', '.join(allowed)}")


def check_options(
    transformer: Any,
    guidance_scale: float,
    distilled_guidance: float,
    num_images_per_prompt: int,
    output_type: str,
    negative: str,
) -> None:
    """Raise ConfigError for options of a call that are out of their range, or that the DiT does not have."""
    check_number("guidance_scale", guidance_scale)
    check_number("distilled_guidance", distilled_guidance)
    check_count("num_images_per_prompt", num_images_per_prompt)
    check_one_of("output_type", output_type, OUTPUT_TYPES)
    check_one_of("negative", negative, get_args(Negative))
    if distilled_guidance != 1 and not transformer.config.guidance_embeds:
        raise ConfigError("this DiT has no guidance embedding", value=distilled_guidance, fix="use guidance_scale")


def prompts_of(prompt: Any) -> list[str]:
    """Return one text, or several, as a list. Raises InputError for an empty list and for values that are not text."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Iterable) else [prompt]
    if not prompts:
        raise InputError("the list of prompts is empty", fix="pass at least one text")
    for text in prompts:
        if not isinstance(text, str):
            raise InputError("a prompt is not text", value=type(text).__name__, fix="pass a str, or a list of them")
    return prompts


def negative_prompts_of(prompt: Any, count: int) -> list[str] | None:
    """Return one negative text for each of ``count`` prompts; None for None or, as in diffusers, empty texts."""
    if prompt is None:
        return None
    texts = prompts_of(prompt)
    if len(texts) == 1:
        texts *= count
    if len(texts) != count:
        raise InputError(f"{len(texts)} negative prompts for {count} prompts", fix="pass one, or one for each prompt")
    return texts if any(text.strip() for text in texts) else None


def generators_of(generator: Any, seeds: Any, images: int) -> Any:
    """Return generators for ``images`` images: one for each seed, or the given ones (one for all, or a list).

    Raises ConfigError if both are given, their number is not that of the images, or one is not a seed or generator.
    """
    if seeds is not None and generator is not None:
        raise ConfigError("both seeds and generator are given", fix="pass one of them")
    given = list(generator) if isinstance(generator, tuple) else generator
    if seeds is not None:
        given = [seeds] if not isinstance(seeds, Iterable) or isinstance(seeds, str) else list(seeds)
    if isinstance(given, list) and len(given) != images:
        raise ConfigError(f"{len(given)} seeds or generators for {images} images", fix="pass one for each image")
    if seeds is not None:
        for seed in given:
            if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not -(2**63) <= seed < 2**64:
                raise ConfigError("a seed is not a whole number of 64 bits", value=seed, fix="use 0 to 2**64 - 1")
        return [torch.Generator().manual_seed(int(seed)) for seed in given]
    for item in given if isinstance(given, list) else [given]:
        if generator is not None and not isinstance(item, torch.Generator):
            kind = type(generator).__name__
            raise ConfigError("generator is not a torch.Generator", value=kind, fix="pass seeds=[...] instead")
    return given


def check_latents(latents: Any, shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless ``latents`` are a tensor of this shape, packed ``[B, T, C]``."""
    found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    if found != shape:
        raise ConfigError(f"latents are not a tensor of shape {list(shape)}", value=found, fix="pass packed noise")


def pair_references(references: Any, prompts: int) -> list[list[np.ndarray]]:
    """Return the references of each prompt as uint8 RGB arrays, upright; all prompts share a flat list.

    Args:
        references: None (no references at all), one image, a list of images, or a list of images for each prompt. An
            image is a PIL image (transparency becomes white), an array ``[H, W]`` or ``[H, W, 1 to 4]`` or a tensor
            ``[C, H, W]``, uint8 or floats in [0, 1]; ``[N, ...]`` are N images.
        prompts: number of prompts.

    Raises InputError for an empty list, also of one prompt, for another number of lists than of prompts, and for a
    value that is not such an image.
    """
    if references is None:
        return [[] for _ in range(prompts)]
    if isinstance(references, Image.Image):
        references = [references]
    elif isinstance(references, (np.ndarray, Tensor)):
        references = list(references) if references.ndim == 4 else [references]
    elif isinstance(references, (str, bytes, Path, dict)) or not isinstance(references, Iterable):
        raise _not_an_image(references)
    references = list(references)
    nested = [isinstance(item, (list, tuple)) for item in references]
    if not references or (all(nested) and not all(references)):
        raise InputError("a list of references is empty", fix="pass at least one image of the subject for each prompt")
    if any(nested) and not all(nested):
        raise InputError("references mix images and lists", fix="pass one list of images, or a list for each prompt")
    if not any(nested):
        shared = [_array(image) for image in references]
        return [shared] * prompts
    if len(references) != prompts:
        raise InputError(f"{len(references)} lists of references for {prompts} prompts", fix="pass one for each prompt")
    return [[_array(image) for image in images] for images in references]


def _array(image: Any) -> np.ndarray:
    if isinstance(image, Tensor):
        return _from_array(_channels_last(image))
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, Image.Image):
        raise _not_an_image(image)
    try:
        return to_rgb(image)
    except Exception as error:  # PIL decodes a lazily opened file here, which may be damaged
        raise InputError(
            f"a reference cannot be decoded ({type(error).__name__}: {error})", fix="pass another image"
        ) from error


def _not_an_image(value: Any) -> InputError:
    hint = "open it with PIL.Image.open" if isinstance(value, (str, Path)) else "pass PIL images, arrays or tensors"
    return InputError("a reference is not an image", value=type(value).__name__, fix=hint)


def _channels_last(image: Tensor) -> np.ndarray:
    tensor = image.detach().cpu()
    values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if values.ndim == 3:
        if values.shape[0] not in (1, 3, 4):
            raise _bad_shape(values, "pass tensors as [C, H, W] with 1, 3 or 4 channels")
        values = values.transpose(1, 2, 0)
    return values


def _from_array(values: np.ndarray) -> np.ndarray:
    """Return uint8 RGB ``[H, W, 3]`` for grey, grey with alpha, RGB or RGBA of the usual number formats."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or not 1 <= values.shape[2] <= 4 or values.size == 0:
        transposed = values.ndim == 3 and values.shape[0] in (1, 3, 4)
        raise _bad_shape(
            values, "call .transpose(1, 2, 0) on it" if transposed else "pass arrays as [H, W] or [H, W, C]"
        )
    pixels = _to_8_bits(values)
    channels = pixels.shape[2]
    if channels in (2, 4):  # with alpha
        return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
    return np.ascontiguousarray(pixels if channels == 3 else np.repeat(pixels, 3, axis=2))


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(
            "a reference has an unsupported number format", value=str(values.dtype), fix="use uint8 0 to 255"
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also for NaN
        raise InputError(
            f"a reference holds floats from {low:.3g} to {high:.3g}", fix="scale them to [0, 1], or pass uint8"
        )
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)


def _bad_shape(values: np.ndarray, fix: str) -> InputError:
    return InputError("a reference does not have the shape of an image", value=tuple(values.shape), fix=fix)
