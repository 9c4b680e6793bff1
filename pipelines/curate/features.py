"""Measure an image: perceptual hash, sharpness and exposure, from its luma at a short side of 256 px."""

import imagehash
import numpy as np
from PIL import Image

from lookalike.data.images import fit_within

FEATURE_SIDE = 256  # px; sharpness can be compared at one scale only


def features(image: np.ndarray) -> dict[str, int | float]:
    """Return the perceptual hash, sharpness and exposure of a uint8 RGB image ``[H, W, 3]``.

    - ``phash``: 64 bits, DCT hash of the ``imagehash`` library.
    - ``sharpness``: variance of the Laplacian of luma.
    - ``luma_mean``, ``luma_std``: of luma (ITU-R 601), 0–255.
    """
    gray = np.asarray(Image.fromarray(image).convert("L"))
    small = fit_within(gray, FEATURE_SIDE)  # scales one plane instead of three
    luma, wide = small.astype(np.float32), small.astype(np.int16)
    sides = wide[2:, 1:-1] + wide[:-2, 1:-1] + wide[1:-1, 2:] + wide[1:-1, :-2]
    laplacian = (sides - 4 * wide[1:-1, 1:-1]).astype(np.float32)  # without the outermost pixels
    return {
        "phash": int.from_bytes(np.packbits(imagehash.phash(Image.fromarray(small)).hash).tobytes(), "big"),
        "sharpness": float(laplacian.var()) if laplacian.size else 0.0,
        "luma_mean": float(luma.mean()),
        "luma_std": float(luma.std()),
    }
