"""Protocols of the annotators, and the check of what a scorer returns."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import numpy as np

from lookalike.errors import InputError


class Embedder(Protocol):
    """Embeds images. Equal ``revision`` means equal vectors for equal images and batches."""

    revision: str
    dim: int

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embed uint8 RGB images ``[H, W, 3]``, which may differ in size, as unit-norm float32 ``[B, dim]``."""


Score = Callable[[np.ndarray, str], float]
"""Maps an upright uint8 RGB image ``[H, W, 3]`` and the name of its class to a number."""


class Scorer(Protocol):
    """A frozen description of a score, without its model: what the number means, and how to load what computes it."""

    side: ClassVar[int]
    """px; the image may be scaled down, but its short side not below this."""

    @property
    def low(self) -> float:
        """Lowest possible score."""

    @property
    def high(self) -> float:
        """Highest possible score."""

    @property
    def revision(self) -> str:
        """Equal revisions give equal scores."""

    def load(self, device: str) -> Score:
        """Load the model. Raises ConfigError if it is not available."""


def checked(scorer: Scorer, value: float) -> float:
    """Return ``value``. Raises InputError if it is outside the range of ``scorer``."""
    if math.isfinite(value) and scorer.low <= value <= scorer.high:
        return value
    raise InputError(
        f"{scorer.revision} gave a score outside of {scorer.low:g} to {scorer.high:g}",
        value=value,
        fix="choose another model, or set the low and high of its scores",
    )
