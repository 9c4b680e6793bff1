"""Convert prompts and images to arrays of fixed shapes. Imports no torch, so that data workers start quickly."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lookalike.errors import ConfigError, InputError
from lookalike.models.components import component_config
from lookalike.models.families import family_of
from lookalike.models.limits import MAX_SIDE
from lookalike.models.presets import MllmConfig, Preset
from lookalike.models.tokenizer import PromptTokenizer
from lookalike.pixels import crop_resize

log = logging.getLogger(__name__)

MIN_SIDE = 16  # pixels of an image
_SHOWN = 120  # characters of a prompt in a message

Pixels = np.ndarray  # uint8 [H, W, 3], upright RGB
OnCut = Callable[[str, str], None]

RAGGED = ("tiles", "references")
"""Columns with an array for each sample, of its references only."""


class Preprocessor:
    """Writes prompts and references as the MLLM's sequence, and resizes references and targets for the VAE.

    Args:
        preset: sizes and template.
        tokenizer_file: ``tokenizer.json`` of a fast tokenizer.
    """

    def __init__(self, preset: Preset, tokenizer_file: Path) -> None:
        self.preset = preset
        self.tokenizer_file = tokenizer_file

    @classmethod
    def from_folder(cls, folder: Path, preset: Preset) -> "Preprocessor":
        """Make the preprocessor of the model whose component folders are in ``folder``.

        Raises InputError if tokenizer or preset contradict mllm/config.json, ConfigError for an unsupported MLLM.
        """
        preprocessor, mllm = cls(preset, folder / "mllm" / "tokenizer.json"), preset.mllm
        config = component_config(folder, "mllm")
        expected, actual = config.get("image_token_id"), preprocessor.image_token_id
        if expected != actual:
            what = f"the MLLM's image_token_id is {expected}, its tokenizer's is {actual}"
            raise InputError(what, value=mllm.image_token, fix="use the model and the tokenizer of the same checkpoint")
        tokens = family_of(config.get("model_type")).tokens_per_image(config, mllm.image_size)
        if tokens != mllm.tokens_per_image:
            what = f"the MLLM makes {tokens} tokens per image, but mllm.tokens_per_image is {mllm.tokens_per_image}"
            raise InputError(what, value=str(folder), fix=f"set mllm.tokens_per_image to {tokens}")
        return preprocessor

    def __getstate__(self) -> dict[str, Any]:
        return {"preset": self.preset, "tokenizer_file": self.tokenizer_file}

    @cached_property
    def _tokenizer(self) -> PromptTokenizer:
        mllm = self._mllm
        return PromptTokenizer(self.tokenizer_file, (mllm.image_token, mllm.image_prefix, mllm.image_suffix))

    @cached_property
    def image_token_id(self) -> int:
        """Token id of the placeholder that image features replace."""
        token_id = self._tokenizer.token_to_id(self._mllm.image_token)
        if token_id is None:
            raise ConfigError(
                "the image token is not in the tokenizer's vocabulary",
                value=self._mllm.image_token,
                fix="set mllm.image_token of the preset to the model's placeholder",
            )
        return token_id

    @cached_property
    def length(self) -> int:
        """Length of every row in tokens: the template with all references, and the longest prompt."""
        before, after = self._around(self.preset.references.max_references)
        return len(self._tokenizer.ids(before + after)) + self._mllm.max_prompt_tokens

    def __call__(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Pixels]],
        targets: Sequence[Pixels] | None = None,
        *,
        truncate_prompts: bool = False,
        on_cut: OnCut | None = None,
        vae_pixels: bool = True,
    ) -> dict[str, np.ndarray]:
        """Make the arrays of B samples with up to R = ``max_references`` references each.

        Args:
            prompts: B texts.
            references: images of each sample, uint8 ``[H, W, 3]``, at most R; may be none.
            targets: B images, or None when generating.
            truncate_prompts: cut a prompt of more than ``max_prompt_tokens`` with a warning; otherwise it is an error.
            on_cut: called instead of the warning with each prompt that is cut, and the first tokens cut off as text.
            vae_pixels: whether the VAE's images are made; otherwise ``references`` and ``target`` have 0 channels.

        Names of control tokens in a prompt (``<IMG_CONTEXT>``, ``<|im_end|>``) are read as ordinary text.

        Returns:
            ``input_ids`` int64 ``[B, L]``, ``attention_mask`` and ``image_mask`` bool ``[B, L]``, ``reference_mask``
            bool ``[B, R]``, ``normalisation`` float32 ``[B, 2, 3]`` (mean and deviation of the MLLM's pixels in [0, 1]
            by channel), and with targets ``target`` uint8 ``[B, 3, H, W]``. The columns :data:`RAGGED` are objects
            ``[B]``: ``tiles`` of uint8 ``[n, 3, h, w]`` and ``references`` of uint8 ``[n, 3, H, W]`` for a sample with
            n references.

        Raises InputError if a prompt is too long or not text, there are too many references, or an image is too small
        or too large.
        """
        if len(prompts) != len(references) or (targets is not None and len(targets) != len(prompts)):
            raise InputError(
                f"{len(prompts)} prompts with {len(references)} lists of references"
                + (f" and {len(targets)} targets" if targets is not None else ""),
                fix="pass one list of references (and one target) for each prompt",
            )
        cut = (on_cut or warn_of_cut) if truncate_prompts else None
        rows = [self._row(p, r, cut, vae_pixels) for p, r in zip(prompts, references, strict=True)]
        columns = {
            name: (ragged if name in RAGGED else np.stack)([row[name] for row in rows]) for name in (rows or [{}])[0]
        }
        if targets is not None:
            for image in targets:
                check_image(image, "target")
            columns["target"] = _for_vae(targets, self.preset.height, self.preset.width, vae_pixels)
        return columns

    def _row(
        self, prompt: str, references: Sequence[Pixels], on_cut: OnCut | None, vae_pixels: bool
    ) -> dict[str, np.ndarray]:
        slots, grid, side = self.preset.references.max_references, self.preset.references, self._mllm.image_size
        if len(references) > slots:
            what = f"{len(references)} references are more than the preset {self.preset.name} takes"
            raise InputError(what, fix=f"pass at most {slots}")
        for image in references:
            check_image(image)
        row = self._tokens(prompt, len(references), on_cut)
        row["reference_mask"] = np.arange(slots) < len(references)
        row["tiles"] = _stack([fit_square(image, side) for image in references], side, side)
        row["normalisation"] = np.array([self._mllm.image_mean, self._mllm.image_std], np.float32)
        row["references"] = _for_vae(references, grid.height, grid.width, vae_pixels)
        return row

    def _tokens(self, prompt: str, num_references: int, on_cut: OnCut | None) -> dict[str, np.ndarray]:
        limit = self._mllm.max_prompt_tokens
        if not isinstance(prompt, str):
            raise InputError("the prompt is not text", value=type(prompt).__name__, fix="pass a string")
        before, after = self._around(num_references)
        ids, cut = self._tokenizer.write(before, prompt, after, limit)
        if cut and on_cut is None:
            raise InputError(
                f"the prompt of {limit + len(cut)} tokens exceeds the limit of {limit}",
                value=prompt[:_SHOWN],
                fix="shorten it",
            )
        if cut and on_cut is not None:
            on_cut(prompt, self._tokenizer.decode(cut[:limit]))
        absent = (self.preset.references.max_references - num_references) * self._mllm.tokens_per_image
        input_ids = np.zeros(self.length, np.int64)
        input_ids[: len(ids)] = ids
        input_ids[len(ids) : len(ids) + absent] = self.image_token_id  # behind the text: no real token attends to them
        attention_mask = np.arange(self.length) < len(ids)
        image_mask = (input_ids == self.image_token_id) & (np.arange(self.length) < len(ids) + absent)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "image_mask": image_mask}

    def _around(self, num_references: int) -> tuple[str, str]:
        """Return the template's text before and after the prompt."""
        mllm = self._mllm
        image = mllm.image_prefix + mllm.image_token * mllm.tokens_per_image + mllm.image_suffix
        before, _, after = mllm.template.partition("{prompt}")
        return before.format(images=image * num_references), after.format(images=image * num_references)

    @property
    def _mllm(self) -> MllmConfig:
        return self.preset.mllm


def ragged(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays of different lengths as one column, object ``[B]``."""
    column = np.empty(len(arrays), object)
    for index, array in enumerate(arrays):
        column[index] = array
    return column


def warn_of_cut(prompt: str, cut: str) -> None:
    """Log the part of a prompt that is cut off, as diffusers' pipelines do."""
    log.warning(
        "The following part of your input was truncated because it is longer than the model's limit: %r (of %r)",
        cut[:_SHOWN],
        prompt[:_SHOWN],
    )


def check_image(image: Pixels, what: str = "reference") -> None:
    """Raise InputError unless this is a uint8 RGB image with sides of MIN_SIDE to MAX_SIDE pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"the {what} is not a uint8 RGB image [H, W, 3]",
            value=f"{image.dtype} {image.shape}",
            fix="convert it to RGB",
        )
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_SIDE:
        raise InputError(
            f"the {what} has {width}x{height} pixels, a size that is not supported",
            fix=f"use one with sides of {MIN_SIDE} to {MAX_SIDE} pixels",
        )


def fit_square(image: Pixels, side: int) -> Pixels:
    """Resize to ``side`` x ``side`` pixels; grey bars keep the aspect ratio."""
    height, width = image.shape[:2]
    if height == width:
        return crop_resize(image, side, side)
    scale = side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3)
    canvas = np.full((side, side, 3), 127, np.uint8)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    canvas[top : top + size[0], left : left + size[1]] = np.asarray(resized)
    return canvas


def _for_vae(images: Sequence[Pixels], height: int, width: int, pixels: bool) -> np.ndarray:
    if not pixels:
        return np.empty((len(images), 0, height, width), np.uint8)
    return _stack([crop_resize(image, height, width) for image in images], height, width)


def _stack(images: Sequence[Pixels], height: int, width: int) -> np.ndarray:
    """Join images of one size, channels first: uint8 ``[n, 3, height, width]``."""
    stacked = np.empty((len(images), 3, height, width), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[:] = image.transpose(2, 0, 1)
    return stacked
