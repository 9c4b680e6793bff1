"""A prepared batch as tensors: inputs of the MLLM and the VAE, and masks of what is real."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


class TensorFields:
    """Base of dataclasses whose fields are tensors or None."""

    def to(self, device: torch.device | str) -> Self:
        """Copy to ``device``; from pinned memory to a GPU without blocking the host."""
        return self._map(lambda value: value.to(device, non_blocking=torch.device(device).type == "cuda"))

    def pin_memory(self) -> Self:
        """Copy to page-locked memory of the host."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{name: None if value is None else change(value) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Batch(TensorFields):
    """Prompts, references and (in training) targets of B samples with R reference slots.

    Unused slots of a sample hold zeros and are masked everywhere, so samples with different numbers of references
    share a batch, and every rank runs the same modules.
    """

    input_ids: Tensor
    """int64 ``[B, L]``: real tokens first, then the placeholders of absent references, then padding."""
    attention_mask: Tensor
    """bool ``[B, L]``: true on real tokens."""
    image_mask: Tensor
    """bool ``[B, L]``: true on image placeholders; the same number in every row."""
    tiles: Tensor
    """uint8 ``[B, R, 3, h, w]``: the references for the MLLM."""
    normalisation: Tensor
    """float32 ``[B, 2, 3]``: mean and standard deviation of the MLLM's pixels in [0, 1], by channel."""
    references: Tensor
    """uint8 ``[B, R, 3, H, W]``: the references for the VAE; 0 channels if only their latents are there."""
    reference_mask: Tensor
    """bool ``[B, R]``: true on slots that hold a reference."""
    target: Tensor | None = None
    """uint8 ``[B, 3, H, W]``, in training and evaluation; 0 channels if only its latents are there."""
    target_latents: Tensor | None = None
    """float16 or float32 ``[B, T, C]``: packed latents of the target, if they were encoded beforehand."""
    reference_latents: Tensor | None = None
    """float16 or float32 ``[B, R, T', C]``: packed latents of the references, if they were encoded beforehand."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def image_tokens_per_row(self) -> int:
        """Number of image placeholders in each row."""
        return int(self.image_mask[0].sum()) if len(self) else 0

    @property
    def pixel_values(self) -> Tensor:
        """float32 ``[B, R, 3, h, w]``: the tiles, normalised on their device; zero in unused slots.

        Equal bit by bit to NumPy's ``(tiles / float32(255) - mean) / deviation``.
        """
        mean, deviation = self.normalisation[:, :, None, :, None, None].unbind(1)
        most = torch.full((), 255.0, device=self.tiles.device)  # by a number, CUDA multiplies with its reciprocal
        values = (self.tiles.float() / most - mean) / deviation
        return values.masked_fill(~self.reference_mask[:, :, None, None, None], 0)

    def rows(self, index: Sequence[int] | Tensor) -> "Batch":
        """Select rows by index, in that order."""
        chosen = torch.as_tensor(index, dtype=torch.long, device=self.input_ids.device)
        return self._map(lambda value: value[chosen])

    def with_conditions_of(self, index: Sequence[int] | Tensor) -> "Batch":
        """Keep the targets; row i gets prompt and references of row ``index[i]`` (the condition mode shuffled)."""
        return dataclasses.replace(self.rows(index), target=self.target, target_latents=self.target_latents)


def to_batch(columns: Mapping[str, np.ndarray]) -> Batch:
    """Convert the columns of :class:`~lookalike.models.preprocess.Preprocessor` to tensors; others are ignored.

    Columns hold references packed; here they get their slots. Slots that no sample uses, and padding behind the longest
    sample, are cut off. The model's outputs do not change, only its work.
    """
    names = ("reference_mask", "image_mask", "attention_mask")
    reference_mask, image_mask, attention_mask = (columns[name].astype(bool) for name in names)
    slots = max(1, int(reference_mask.sum(1).max(initial=0)))
    if slots < reference_mask.shape[1]:
        kept = int(image_mask[0].sum()) // reference_mask.shape[1] * slots
        image_mask = image_mask & (np.cumsum(image_mask, axis=1) <= kept)
    used = (attention_mask | image_mask).any(axis=0)
    length = int(np.flatnonzero(used)[-1]) + 1
    target = columns.get("target")
    return Batch(
        input_ids=_tensor(np.where(attention_mask | image_mask, columns["input_ids"], 0)[:, :length]),
        attention_mask=_tensor(attention_mask[:, :length]),
        image_mask=_tensor(image_mask[:, :length]),
        tiles=_padded(columns["tiles"], slots),
        normalisation=_tensor(columns["normalisation"]),
        references=_padded(columns["references"], slots),
        reference_mask=_tensor(reference_mask[:, :slots]),
        target=None if target is None else _tensor(target),
        target_latents=_tensor(columns["target_latents"]) if "target_latents" in columns else None,
        reference_latents=_padded(columns["reference_latents"], slots) if "reference_latents" in columns else None,
    )


def _padded(rows: np.ndarray, slots: int) -> Tensor:
    """Join the arrays ``[n, …]`` of each sample to ``[B, slots, …]``, with zeros in unused slots."""
    padded = np.zeros((len(rows), slots, *rows[0].shape[1:]), rows[0].dtype)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(padded)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values))  # a copy: Ray's arrays are read-only views of shared memory
