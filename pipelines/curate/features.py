"""What an image says about itself, from its pixels at a short side of 256 px."""

import imagehash
import numpy as np
from PIL import Image
from scipy import ndimage

from lookalike.data.images import fit_within

FEATURE_SIDE = 256  # px; sharpness means something only at one scale
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def features(image: np.ndarray) -> dict[str, int | float]:
    """Perceptual hash and figures of sharpness and exposure of a uint8 RGB image ``[H, W, 3]``.

    - ``phash``: 64 bits, DCT hash of the ``imagehash`` library.
    - ``sharpness``: variance of the Laplacian of luma.
    - ``luma_mean``, ``luma_std``: of luma, 0–255.
    """
    small = fit_within(image, FEATURE_SIDE)
    luma = small.astype(np.float32) @ _LUMA
    return {
        "phash": int.from_bytes(np.packbits(imagehash.phash(Image.fromarray(small)).hash).tobytes(), "big"),
        "sharpness": float(ndimage.laplace(luma).var()),
        "luma_mean": float(luma.mean()),
        "luma_std": float(luma.std()),
    }
