"""``quality_sharpness``, ``quality_contrast``, ``quality_artefacts``: is an image blurred, or faded, or has it a grid?

| name | formula | range |
|---|---|---|
| ``quality_sharpness`` | s / (s + r): s of the image, r the mean of the references at its size. s is the root mean \
square of the Laplacian in the sharpest tenth of the image's 8 x 8 blocks, divided by the luma's standard deviation \
| 0 to 1; 0.5 is as sharp as the references, less is blurred |
| ``quality_contrast`` | distance of the 5th and 95th percentile of luma, over 255 | 0 to 1; a grey image has 0 |
| ``quality_artefacts`` | greatest excess e = (p - n) / (p + n) of the power p at a frequency of a grid over the mean \
power n beside it, along rows and columns: at 1/2 and 1/4 per pixel in luma (checkerboards of upsampling), at 1/8 in \
the absolute differences of neighbours (blocks of 8 x 8 pixels) | 0 to 1; higher is worse |

Source: sharpness is the variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield
microscopy", 2000), made independent of contrast; blocks as by Wang, Bovik and Evans, "Blind measurement of blocking
artifacts in images", 2000. Model: none.

They cannot see whether an image makes sense, its anatomy, colour casts, noise (which counts as sharp), ringing, or
grids of other periods; a photo with a regular pattern of 2, 4 or 8 pixels counts as one with artefacts.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lookalike.evaluation.metrics.base import Pixels, Settings, Task, at_size_of

Floats = npt.NDArray[np.float64]

_BLOCK = 8  # px
_SHARPEST = 0.1  # share of the blocks
_LUMA = np.array([0.299, 0.587, 0.114])
_FLAT = 1.0  # grey levels; below this standard deviation an image is flat
_LEAST_SIDE = 32  # px; smaller images have too few periods


class Quality:
    """Sharpness relative to the references, contrast, and artefacts on a grid."""

    labels: ClassVar[Mapping[str, str]] = {
        "quality_sharpness": "sharpness",
        "quality_contrast": "contrast",
        "quality_artefacts": "artefacts",
    }
    likeness: ClassVar[Sequence[str]] = ()

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Quality":
        return cls()

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        rows = []
        for image, task in zip(images, tasks, strict=True):
            values = {"quality_contrast": contrast(image)}
            if min(image.shape[:2]) >= _LEAST_SIDE:
                values["quality_artefacts"] = artefacts(image)
                references = [sharpness(photo) for photo in at_size_of(image, task.references)]
                if references and float(np.mean(references)) > 0:
                    own = sharpness(image)
                    values["quality_sharpness"] = own / (own + float(np.mean(references)))
            rows.append(values)
        return rows


def sharpness(image: Pixels) -> float:
    """Root mean square of the Laplacian in the sharpest blocks over the luma's deviation: 0 or more; 0 if flat."""
    luma = image @ _LUMA
    deviation = float(luma.std())
    if deviation < _FLAT:
        return 0.0
    height, width = (side // _BLOCK * _BLOCK for side in luma.shape)
    squared = ndimage.laplace(luma, mode="nearest")[:height, :width] ** 2
    blocks = np.sort(squared.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).mean((1, 3)), axis=None)
    return float(np.sqrt(blocks[-max(1, round(_SHARPEST * len(blocks))) :].mean()) / deviation)


def contrast(image: Pixels) -> float:
    """Distance of the 5th and 95th percentile of luma: 0 to 1."""
    low, high = np.percentile(image @ _LUMA, (5, 95))
    return float((high - low) / 255)


def artefacts(image: Pixels) -> float:
    """Greatest excess of power at a frequency of a grid: 0 to 1."""
    luma = image @ _LUMA
    excess = [0.0]
    for rows in (luma, luma.T):
        excess += [_excess(_power(rows).mean(0), [period]) for period in (2, 4)]
        steps = np.abs(np.diff(rows, axis=1)).mean(0)  # blocks begin at the same columns in all rows
        excess.append(_excess(_power(steps[None])[0], [_BLOCK, _BLOCK / 2, _BLOCK / 3]))
    return max(excess)


def _power(rows: Floats) -> Floats:
    """Power spectra of rows [n, length] under a Hann window."""
    length = rows.shape[1] // 24 * 24  # so that the frequencies of the grids are among those of the transform
    cut = rows[:, :length]
    window = np.hanning(length + 1)[:-1]
    return np.asarray(np.abs(np.fft.rfft((cut - cut.mean(1, keepdims=True)) * window)) ** 2)


def _excess(power: Floats, periods: Sequence[float]) -> float:
    """(p - n) / (p + n) of the summed power at the frequencies 1 / period and the power beside them: 0 to 1."""
    length = 2 * (len(power) - 1)
    places = [round(length / period) for period in periods]
    beside = [[power[at + step] for step in (-5, -4, -3, 3, 4, 5) if 0 < at + step < len(power)] for at in places]
    at_grid, near = float(sum(power[place] for place in places)), float(sum(np.mean(group) for group in beside))
    near += _FLAT**2 * length / 100  # no excess in what rounding leaves
    return max(0.0, (at_grid - near) / (at_grid + near))
