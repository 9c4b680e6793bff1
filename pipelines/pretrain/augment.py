"""Augmentation for pretraining: crops, zooms and recolourings of images, and a few real photos to crop from."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike.errors import ConfigError

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]

_SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
_LARGEST_PX = 512  # shorter side of a photo in memory


def photographs() -> list[Pixels]:
    """Load the photos of scikit-image and scikit-learn, with a shorter side of at most 512 pixels."""
    try:
        import skimage.data
        from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "photographs needs scikit-image and scikit-learn, which are not installed",
            fix="install the dev extra, or set --photographs 0",
        ) from error
    images = [getattr(skimage.data, name)() for name in _SKIMAGE]
    return [_shrink(np.asarray(image)[..., :3]) for image in [*images, *load_sample_images().images]]


def vary(image: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """Return a square crop of a fifth to all of the image, mirrored and recoloured at random: [side, side, 3]."""
    shorter = min(image.shape[:2])
    size = int(shorter * rng.uniform(min(1.0, max(0.2, side / shorter)), 1))
    square = _crop(image, size, side, rng).astype(np.float32)
    if rng.random() < 0.3:
        square = square[..., rng.permutation(3)]
    contrast = np.exp(rng.normal(0, 0.12, 3))
    square = (square - square.mean((0, 1))) * contrast + square.mean((0, 1)) + rng.normal(0, 12, 3)
    return np.asarray(np.clip(square, 0, 255), np.uint8)


def zoom(image: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """Return the whole image or a crop of half to all of it, mirrored at random: [side, side, 3]."""
    shorter = min(image.shape[:2])
    return _crop(image, shorter if rng.random() < 0.5 else int(shorter * rng.uniform(0.5, 1)), side, rng)


def window(image: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """Return a square of ``side`` pixels of the image, not resized."""
    top, left = (int(rng.integers(extent - side + 1)) for extent in image.shape[:2])
    return image[top : top + side, left : left + side]


def jitter(image: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """Return nearly all of the image, a little brighter or darker, not mirrored: [side, side, 3]."""
    size = int(min(image.shape[:2]) * rng.uniform(0.88, 1))
    square = _crop(image, size, side, rng, mirror=False).astype(np.float32) * rng.uniform(0.88, 1.12)
    return np.asarray(np.clip(square, 0, 255), np.uint8)


def save_grid(path: Path, rows: list[npt.NDArray[np.uint8]], scale: int = 2) -> None:
    """Write rows of images, uint8 [N, 3, H, W] each, as one PNG; shorter rows end in black."""
    longest = max(len(row) for row in rows)
    full = [np.pad(row, [(0, longest - len(row)), (0, 0), (0, 0), (0, 0)]) for row in rows]
    lines = [np.concatenate(list(row.transpose(0, 2, 3, 1)), axis=1) for row in full]
    grid = Image.fromarray(np.concatenate(lines, axis=0))
    grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.NEAREST).save(path)


def _crop(image: Pixels, size: int, side: int, rng: np.random.Generator, mirror: bool = True) -> Pixels:
    top, left = (int(rng.integers(extent - size + 1)) for extent in image.shape[:2])
    square = Image.fromarray(image[top : top + size, left : left + size])
    resized = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2))
    return np.asarray(resized[:, ::-1] if mirror and rng.random() < 0.5 else resized)


def _shrink(image: Pixels) -> Pixels:
    scale = min(1.0, _LARGEST_PX / min(image.shape[:2]))
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
