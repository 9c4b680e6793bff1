"""How images agree in structure, whatever their colours: orientation fields and the RV coefficient of windows.

Legend: h, w pixels.
"""

from functools import reduce

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Complex = npt.NDArray[np.complex64]

WINDOW = 5  # px
_SHARE = 0.4  # of the weight
_NOISE = 3.0  # variance below which a window has no structure
_TEXTURE = 8.0  # standard deviation of a window that gets half its weight
_NEARBY = 9  # px, within which gradients are compared
_FAINT = 4.0  # gradient that counts half beside nothing else
_LUMA_AND_CHROMA = np.array([[0.518, 1.017, 0.197], [-0.118, -0.232, 0.35], [0.35, -0.293, -0.057]], np.float32)
"""JFIF's luma with the variance that it has as three equal channels, and its chroma with a weight of 0.7."""
_PAIRS = (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)  # of channels; the first three are variances


def orientations(image: npt.NDArray[np.uint8]) -> Complex:
    """Orientation field of an image, uint8 [h, w, 3]: complex64 [h, w] of magnitude 0 to 1.

    The angle is twice that of the edge: ``(Jxx - Jyy + 2i Jxy) / tr J`` of the structure tensor J of the colour
    gradient (Di Zenzo, "A note on the gradient of a multi-image", 1986). So it depends neither on the colours beside an
    edge nor on which of them is the brighter one. The magnitude is that of the gradient relative to those nearby.
    """
    pixels = image.astype(np.float32)
    along_x = ndimage.gaussian_filter1d(_difference(pixels, 1), 0.7, axis=0, mode="nearest")
    along_y = ndimage.gaussian_filter1d(_difference(pixels, 0), 0.7, axis=1, mode="nearest")
    xx, yy, xy = (along_x**2).sum(2), (along_y**2).sum(2), (along_x * along_y).sum(2)
    trace = xx + yy
    gradient = np.sqrt(trace)
    nearby = ndimage.uniform_filter(gradient, _NEARBY)
    magnitude = gradient / (gradient + nearby / 2 + _FAINT) / (trace + 1e-6)
    return np.asarray((xx - yy + 2j * xy) * magnitude, np.complex64)


def luma_and_chroma(image: npt.NDArray[np.uint8]) -> Floats:
    """Convert RGB uint8 [3, h, w] to the channels that :func:`agreement` compares: float32 [3, h, w].

    Chroma has less than its weight: there a copy has lost more (JPEG, a VAE), and two views of a subject in two colours
    agree by chance. Without any, copies in other colours of equal luma would not be found.
    """
    return np.asarray(np.tensordot(_LUMA_AND_CHROMA, image.astype(np.float32), 1))


def agreement(a: Floats, b: Floats, weight: Floats) -> float:
    """Agreement in structure of two aligned images [3, h, w] where ``weight`` [h, w] is not 0: 0 to 1.

    In each window of 5 x 5 pixels it is the RV coefficient of the colours (Robert and Escoufier, "A unifying tool for
    linear multivariate statistical methods", 1976), ``|C_ab|² / (|C_aa| |C_bb|)`` of their 3 x 3 covariances: the
    square of SSIM's structure term, extended to colours. It is 1 wherever one image is the other in other colours. The
    result is the mean over the 40 % of the weighted structure that agree best, since the weight is an estimate of where
    the subject is, and a copy may be partly covered.
    """
    cross = (a[:, None] * b).reshape(9, *weight.shape)
    means = _window_means(np.concatenate([a, b, _products(a, a), _products(b, b), cross]))
    mean_a, mean_b = means[:3], means[3:6]
    own_a, own_b = means[6:12] - _products(mean_a, mean_a), means[12:18] - _products(mean_b, mean_b)
    shared = means[18:] - (mean_a[:, None] * mean_b).reshape(9, *means.shape[1:])
    rv = (shared**2).sum(0) / ((_norm(own_a) + _NOISE) * (_norm(own_b) + _NOISE))
    texture = np.sqrt(np.maximum(0, np.maximum(own_a[:3].sum(0), own_b[:3].sum(0)) / 3))
    edge = WINDOW // 2
    return _mean_of_best(rv, weight[edge:-edge, edge:-edge] * texture / (texture + _TEXTURE))


def _window_means(layers: Floats) -> Floats:
    """Means of the windows that lie in [n, h, w]: [n, h - 4, w - 4]. (scipy's filter takes five times as long.)"""
    height, width = (side - WINDOW + 1 for side in layers.shape[1:])
    rows = reduce(np.add, (layers[:, first : first + height] for first in range(WINDOW)))
    windows = reduce(np.add, (rows[:, :, first : first + width] for first in range(WINDOW)))
    return np.asarray(windows / np.float32(WINDOW**2))


def _mean_of_best(values: Floats, weight: Floats) -> float:
    """Weighted mean of the greatest values that have :data:`_SHARE` of the weight together; 0 without weight."""
    order = np.argsort(-values, axis=None, kind="stable")
    values, weight = values.ravel()[order].astype(np.float64), weight.ravel()[order].astype(np.float64)
    total = weight.cumsum()
    if total[-1] <= 0:
        return 0.0
    last = int(np.searchsorted(total, _SHARE * total[-1])) + 1
    return float(np.clip((values[:last] * weight[:last]).sum() / total[last - 1], 0, 1))


def _difference(pixels: Floats, axis: int) -> Floats:
    """Central difference along an axis."""
    return np.asarray(ndimage.convolve1d(pixels, [0.5, 0, -0.5], axis=axis, mode="nearest"))


def _products(a: Floats, b: Floats) -> Floats:
    """Products of the channels of [3, h, w]: [6, h, w]."""
    return a[list(_PAIRS[0])] * b[list(_PAIRS[1])]


def _norm(covariance: Floats) -> Floats:
    """Frobenius norm of the symmetric matrices whose six elements are [6, h, w]."""
    return np.asarray(np.sqrt((covariance[:3] ** 2).sum(0) + 2 * (covariance[3:] ** 2).sum(0)))
