"""Geometry of pixels that both wings need: curation and training see the same crop of a photograph."""

import numpy as np
from PIL import Image


def crop_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest centred crop of that aspect, resized; nothing is stretched: uint8 ``[height, width, 3]``."""
    source_height, source_width = image.shape[:2]
    if (source_height, source_width) == (height, width):
        return image
    scale = min(source_height / height, source_width / width)
    box_height, box_width = min(height * scale, source_height), min(width * scale, source_width)
    top, left = (source_height - box_height) / 2, (source_width - box_width) / 2
    box = (left, top, left + box_width, top + box_height)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3)
    return np.asarray(resized)
