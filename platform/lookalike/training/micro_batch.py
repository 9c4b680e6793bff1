"""The samples of one forward pass, as the loop, the objective and the workload see them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lookalike.diffusion.flow import Draw
from lookalike.models.batch import Batch
from lookalike.training.curriculum import PhaseConfig

SampleColumns = Mapping[str, np.ndarray]
"""Prepared samples by column, one row each: the preprocessor's columns, and ``sample_id`` (str), ``step`` (int64) and
``weight`` (float32, 0 for padding and for samples that could not be prepared)."""


@dataclass(frozen=True)
class ComputedInputs:
    """What the host computed of a micro batch while a GPU was busy with the one before; in pinned memory for a GPU."""

    batch: Batch
    """With latents."""
    drawn: Draw
    """Noise, noise level and dropout of each sample."""
    phase: PhaseConfig
    """The phase that they were computed for."""
    epoch: int
    """The epoch that they were computed for."""


@dataclass(frozen=True)
class MicroBatch:
    """Prepared samples, with the inputs that were computed of them if that has been done."""

    columns: SampleColumns
    inputs: ComputedInputs | None = None
