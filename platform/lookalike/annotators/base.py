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


Score = Callable[[Sequence[np.ndarray], Sequence[str]], list[float]]
"""Maps upright uint8 RGB images ``[H, W, 3]`` of any sizes, and the names of their classes, to a number each.

A call is one batch. On a CPU the model computes one image at a time, which is fastest there (the caches hold one image)
and makes a score independent of the images beside it. On a GPU it computes all of them at once; calls of equal length
then run the same kernels, so callers fill the last batch up.
"""

Caption = Callable[[Sequence[np.ndarray]], list[str]]
"""Maps upright uint8 RGB images ``[H, W, 3]`` to a line of text each, in batches as :data:`Score` does."""


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
