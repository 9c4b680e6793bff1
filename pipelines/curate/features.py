"""Measure an image: perceptual hash, sharpness and exposure, from its luma at a short side of 256 px."""

import imagehash
import numpy as np
from PIL import Image

from lookalike.data.images import fit_within

FEATURE_SIDE = 256  # px; sharpness can be compared at one scale only
_LEVELS = np.arange(256, dtype=np.int64)


def features(image: np.ndarray) -> dict[str, int | float]:
    """Return the perceptual hash, sharpness and exposure of a uint8 image: luma ``[H, W]`` or RGB ``[H, W, 3]``.

    - ``phash``: 64 bits, DCT hash of the ``imagehash`` library.
    - ``sharpness``: variance of the Laplacian of luma.
    - ``luma_mean``, ``luma_std``: of luma (ITU-R 601), 0–255.
    """
    luma = image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))
    luma = fit_within(luma, FEATURE_SIDE)
    photo = Image.fromarray(luma)
    counts = np.array(photo.histogram())  # integers: sums of any size are exact
    mean, squares = (float(counts @ _LEVELS**power) / luma.size for power in (1, 2))
    return {
        "phash": int.from_bytes(np.packbits(imagehash.phash(photo).hash).tobytes(), "big"),
        "sharpness": _variance_of_laplacian(luma),
        "luma_mean": mean,
        "luma_std": max(0.0, squares - mean**2) ** 0.5,
    }


def _variance_of_laplacian(luma: np.ndarray) -> float:
    """Of all pixels but the outermost."""
    wide = luma.astype(np.int16)
    laplacian = wide[2:, 1:-1] + wide[:-2, 1:-1]
    laplacian += wide[1:-1, 2:]
    laplacian += wide[1:-1, :-2]
    laplacian -= 4 * wide[1:-1, 1:-1]
    if not laplacian.size:
        return 0.0
    values = laplacian.ravel().astype(np.float32)  # squares of up to 1020 add up in blocks: exact to 1e-6
    return max(0.0, float(np.dot(values, values)) / values.size - float(laplacian.mean(dtype=np.float64)) ** 2)
