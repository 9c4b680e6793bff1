"""Find where an image repeats the subject of a photo: at any place, in many sizes, mirrored or not, in any colours.

1. Search: the subject's orientation field (:func:`~lookalike.evaluation.metrics.structure.orientations`) is compared
   with that of the image at every place, by normalised cross-correlation (FFT), in 15 sizes and both mirrorings.
2. Alignment: size and place of the best candidates are refined to fractions of a pixel, by their agreement in
   structure (:func:`~lookalike.evaluation.metrics.structure.agreement`).

It does not find copies that are turned, or bent in perspective.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft
from PIL import Image

from lookalike.annotators.foreground import foreground_weight
from lookalike.evaluation.metrics.structure import WINDOW, Complex, Floats, agreement, luma_and_chroma, orientations

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]

_SEARCH_SIDE = 48  # px, short side of the image while it is searched
_MOST_SIDE = 80  # px, greatest short side of the image while it is compared
_SIZES = tuple(0.3 * 1.12**step for step in range(15))  # 0.30 to 1.47
_MOST_ASPECT = 3  # of an image or photo; of a longer one the middle is compared
_VISIBLE = 0.6  # share of the subject that must lie in the image
_CANDIDATES, _REFINED, _PER_SIZE = 6, 2, 2
_STEPS = (1.0, 0.5, 0.25)
_MOVES = ((0.05, 0.0, 0.0), (-0.05, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, -1.0))
"""Relative change of size, and shift of the centre down and right in parts of 1 / 64 of the image."""


@dataclass(frozen=True)
class Match:
    """A place of an image that resembles a photo's subject. Lengths are parts of the image's short side."""

    similarity: float
    """Agreement in structure, 0 to 1."""
    size: float = 0.0
    """Long side of the subject."""
    y: float = 0.0
    """Centre of the subject, from the top."""
    x: float = 0.0
    """Centre of the subject, from the left, or from the right if mirrored."""
    mirrored: bool = False
    """Whether the image shows it mirrored."""


NOWHERE = Match(0.0)


class Subject:
    """The subject of a photo (uint8 [H, W, 3]), prepared to be found in images."""

    def __init__(self, photo: Pixels) -> None:
        photo = _middle(photo)
        shrink = min(1.0, 2 * _MOST_SIDE / min(photo.shape[:2]))
        height, width = (max(2 * WINDOW, round(side * shrink)) for side in photo.shape[:2])
        self._photo = _resized(photo, height, width)
        weight = _stretched(foreground_weight(photo), height, width)
        self._weight = weight / weight.max() * (weight > 0.1 * weight.max())
        self.top, self.left, self.bottom, self.right = _bounds(self._weight, height // 24)
        self.long_side = max(self.bottom - self.top, self.right - self.left)
        margin = self._margin = max(height, width)
        around = (margin, margin), (margin, margin)
        colours = np.pad(self._photo, (*around, (0, 0)), mode="edge")
        bytes_of_weight = np.pad(np.asarray(np.rint(255 * self._weight), np.uint8), around)
        self._total = float(bytes_of_weight.sum())
        self._layers = Image.fromarray(np.dstack([colours, bytes_of_weight]), "CMYK")  # any mode of four plain bands
        self.spectra = lru_cache(maxsize=1)(self._spectra)

    def _spectra(self, height: int, width: int) -> list["_Spectrum"]:
        """The subject in each size, to be searched in images of ``height`` x ``width`` pixels."""
        crop = self._photo[self.top : self.bottom, self.left : self.right]
        weight = self._weight[self.top : self.bottom, self.left : self.right]
        spectra = []
        for size in _SIZES:
            scale = size * min(height, width) / self.long_side
            h, w = (max(3, round(side * scale)) for side in weight.shape)
            field, share = orientations(_resized(crop, h, w)), _stretched(weight, h, w)
            share = share / share.sum()
            layers = np.stack([share * field, share.astype(np.complex64)])
            shape = scipy.fft.next_fast_len(height + h), scipy.fft.next_fast_len(width + w)
            energy = float((share * np.abs(field) ** 2).sum())
            spectra.append(_Spectrum(size, (h, w), np.conj(scipy.fft.fft2(layers, shape)), energy))
        return spectra

    def placed(self, match: Match, height: int, width: int) -> "tuple[Floats, Floats, tuple[slice, slice]] | None":
        """The subject as it would lie in an image of ``height`` x ``width`` pixels.

        Returns its luma and chroma [3, h, w] and its weight [h, w] in the part of the image that it covers, and that
        part; None if too little of it lies in the image.
        """
        short = min(height, width)
        scale = self.long_side / (match.size * short)  # px of the photo per px of the image
        top = match.y * short - (self.bottom - self.top) / scale / 2
        left = match.x * short - (self.right - self.left) / scale / 2
        rows = slice(max(0, int(top)), min(height, int(np.ceil(top + (self.bottom - self.top) / scale))))
        columns = slice(max(0, int(left)), min(width, int(np.ceil(left + (self.right - self.left) / scale))))
        h, w = rows.stop - rows.start, columns.stop - columns.start
        if min(h, w) < WINDOW:
            return None
        x, y = (
            first + self._margin + (part.start - start) * scale
            for first, part, start in ((self.left, columns, left), (self.top, rows, top))
        )
        box = (x, y, x + w * scale, y + h * scale)
        if min(box) < 0 or box[2] > self._layers.width or box[3] > self._layers.height:
            return None
        bands = np.asarray(self._layers.resize((w, h), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
        if float(bands[3].sum()) * scale**2 < _VISIBLE * self._total:
            return None
        return luma_and_chroma(bands[:3]), bands[3].astype(np.float32), (rows, columns)


def best_match(subject: Subject, image: Pixels) -> Match:
    """Find the place of ``image`` (uint8 [H, W, 3], of any size) that resembles ``subject`` most."""
    image = _middle(image)
    short = min(image.shape[:2])
    if short < 2 * WINDOW:
        return NOWHERE
    compared = _with_short_side(image, min(_MOST_SIDE, short))
    both = {False: compared, True: compared[:, ::-1]}
    pixels = {mirrored: luma_and_chroma(part.transpose(2, 0, 1)) for mirrored, part in both.items()}
    found = sorted(_search(subject, _with_short_side(image, _SEARCH_SIDE)), key=_similarity)[-_CANDIDATES:]
    candidates = sorted((_measured(subject, match, pixels) for match in found), key=_similarity)
    return max((_refined(subject, match, pixels) for match in candidates[-_REFINED:]), key=_similarity, default=NOWHERE)


class SubjectCache:
    """The subjects of the photos that were looked at last; an entry takes about 5 MB."""

    def __init__(self, photos: int = 16) -> None:
        self._most = photos
        self._subjects: OrderedDict[str, Subject] = OrderedDict()

    def __call__(self, photo: Pixels) -> Subject:
        """The subject of ``photo``, uint8 [H, W, 3]."""
        key = pixels_key(photo)
        if key not in self._subjects:
            self._subjects[key] = Subject(photo)
        self._subjects.move_to_end(key)
        if len(self._subjects) > self._most:
            self._subjects.popitem(last=False)
        return self._subjects[key]


def pixels_key(image: Pixels) -> str:
    """Identity of an image's pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def greatest_similarity(subjects: SubjectCache, image: Pixels, photos: Sequence[Pixels]) -> float | None:
    """Similarity of ``image`` to that of ``photos`` whose subject it resembles most: 0 to 1; None without photos."""
    return max((best_match(subjects(photo), image).similarity for photo in photos), default=None)


@dataclass(frozen=True)
class _Spectrum:
    """The subject in one size of the search."""

    size: float
    shape: tuple[int, int]
    """Of the crop, px."""
    values: Complex
    """Conjugated spectra of the weighted orientations and of the weight [2, n, m]."""
    energy: float
    """Weighted mean square of the orientations."""


def _search(subject: Subject, image: Pixels) -> Iterator[Match]:
    """Yield the best places of each size; their similarity is the correlation of orientations."""
    height, width = image.shape[:2]
    short = min(height, width)
    for mirrored in (False, True):
        field = orientations(image[:, ::-1] if mirrored else image)
        layers = np.stack([field, np.abs(field) ** 2 + np.complex64(1j)])  # 1j counts the pixels in the image
        own: dict[tuple[int, ...], Complex] = {}
        for part in subject.spectra(height, width):
            shape = part.values.shape[1:]
            if shape not in own:
                own[shape] = scipy.fft.fft2(layers, shape)
            products, sums = scipy.fft.ifft2(own[shape] * part.values)
            norm = np.sqrt(part.energy * np.maximum(sums.real, 0) + 1e-4)
            correlation = np.where(sums.imag > _VISIBLE, products.real / norm, -1)
            for y, x, value in _peaks(correlation):
                y, x = (y - shape[0] if y >= height else y), (x - shape[1] if x >= width else x)  # the transform wraps
                centre = (y + part.shape[0] / 2) / short, (x + part.shape[1] / 2) / short
                yield Match(value, part.size, *centre, mirrored)


def _peaks(values: Floats) -> Iterator[tuple[int, int, float]]:
    """Yield the place and value of the greatest values, each outside the neighbourhood of those before it."""
    values = values.copy()
    for _ in range(_PER_SIZE):
        y, x = divmod(int(values.argmax()), values.shape[1])
        yield y, x, float(values[y, x])
        rows, columns = (
            np.arange(at - 2, at + 3) % side for at, side in zip((y, x), values.shape, strict=True)
        )  # circular, as the transform is
        values[np.ix_(rows, columns)] = -1


def _measured(subject: Subject, match: Match, pixels: Mapping[bool, Floats]) -> Match:
    """``match`` with its agreement in structure; ``pixels`` [3, H, W] are the image, and (True) the mirrored one."""
    image = pixels[match.mirrored]
    placed = subject.placed(match, *image.shape[1:])
    if placed is None:
        return replace(match, similarity=0.0)
    colours, weight, (rows, columns) = placed
    return replace(match, similarity=agreement(colours, image[:, rows, columns], weight))


def _refined(subject: Subject, match: Match, pixels: Mapping[bool, Floats]) -> Match:
    """Change size and place as long as the agreement rises, in smaller and smaller steps."""
    for step in _STEPS:
        for grow, down, right in _MOVES:
            moved = replace(
                match,
                size=match.size * (1 + grow * step),
                y=match.y + down * step / 64,
                x=match.x + right * step / 64,
            )
            match = max(match, _measured(subject, moved, pixels), key=_similarity)
    return match


def _similarity(match: Match) -> float:
    return match.similarity


def _middle(image: Pixels) -> Pixels:
    """The middle of an image that is longer than :data:`_MOST_ASPECT` times its short side, which bounds memory."""
    height, width = image.shape[:2]
    most = _MOST_ASPECT * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return image[top : top + min(height, most), left : left + min(width, most)]


def _with_short_side(image: Pixels, side: int) -> Pixels:
    scale = side / min(image.shape[:2])
    return _resized(image, round(image.shape[0] * scale), round(image.shape[1] * scale))


def _resized(image: Pixels, height: int, width: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3))


def _stretched(weight: Floats, height: int, width: int) -> Floats:
    return np.array(Image.fromarray(weight).resize((width, height), Image.Resampling.BILINEAR), np.float32)


def _bounds(weight: Floats, around: int) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what is not 0, and of a margin of ``around`` pixels where there are so many."""
    rows, columns = np.nonzero(weight.any(1))[0], np.nonzero(weight.any(0))[0]
    height, width = weight.shape
    top, left = max(0, int(rows[0]) - around), max(0, int(columns[0]) - around)
    return top, left, min(height, int(rows[-1]) + 1 + around), min(width, int(columns[-1]) + 1 + around)
