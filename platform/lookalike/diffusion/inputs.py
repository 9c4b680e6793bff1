"""What users hand to the pipeline, checked before anything is computed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lookalike.errors import ConfigError, InputError
from lookalike.pixels import to_rgb


def check_size(height: int, width: int, multiple: int) -> None:
    """Raise ConfigError unless both are positive multiples of the pixels of one token."""
    if height < multiple or width < multiple or height % multiple or width % multiple:
        raise ConfigError(f"image of {width}x{height} pixels", fix=f"use multiples of {multiple}")


def check_generators(generators: Any, images: int) -> None:
    """Raise ConfigError unless a list of generators (or seeds) has one for each image."""
    if isinstance(generators, list) and len(generators) != images:
        raise ConfigError(f"{len(generators)} seeds or generators for {images} images", fix="pass one for each image")


def pair_references(references: Sequence[Any], prompts: int) -> list[list[np.ndarray]]:
    """References of each prompt as uint8 RGB arrays, turned upright; a flat list is shared by all prompts.

    Raises:
        InputError: none at all, none for one of the prompts, or as many lists as there are no prompts.
    """
    if isinstance(references, (Image.Image, np.ndarray)):
        references = [references]
    nested = [isinstance(item, (list, tuple)) for item in references]
    if not references or (all(nested) and not all(references)):
        raise InputError("no references", fix="pass at least one image of the subject for each prompt")
    if any(nested) and not all(nested):
        raise InputError("references mix images and lists", fix="pass one list of images, or a list for each prompt")
    if not any(nested):
        shared = [_array(image) for image in references]
        return [shared] * prompts
    if len(references) != prompts:
        raise InputError(f"{len(references)} lists of references for {prompts} prompts", fix="pass one for each prompt")
    return [[_array(image) for image in images] for images in references]


def _array(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if not isinstance(image, Image.Image):
        raise InputError("a reference is no image", value=type(image).__name__, fix="pass PIL images or uint8 arrays")
    try:
        return to_rgb(image)
    except Exception as error:  # a file that PIL opened lazily is decoded here, and may be damaged
        raise InputError(
            f"a reference cannot be decoded ({type(error).__name__}: {error})", fix="pass another image"
        ) from error
