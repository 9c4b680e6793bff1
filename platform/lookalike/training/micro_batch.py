"""The samples of one forward pass. Light at import: the loop needs the types only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lookalike.diffusion.flow import Draw
    from lookalike.models.batch import Batch

SampleColumns = Mapping[str, np.ndarray]
"""Prepared samples by column, one row each: the preprocessor's columns, and ``sample_id`` (str), ``step`` (int64) and
``weight`` (float32, 0 for padding and for samples that could not be prepared)."""


@dataclass(frozen=True)
class MicroBatch:
    """Prepared samples, and what the host computed of them while a GPU was busy with the micro batch before."""

    columns: SampleColumns
    batch: "Batch | None" = None
    """The columns as tensors with latents, in pinned memory; None if it has not been computed."""
    drawn: "Draw | None" = None
    """Noise, noise level and dropout of each sample for one epoch, in pinned memory; None like ``batch``."""
