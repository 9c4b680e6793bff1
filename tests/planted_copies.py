"""Plant copies of photos: crops and cutouts, moved, mirrored, scaled, in other colours, blurred or saved as JPEG."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from pipelines.ingest.sample.scene import render
from pipelines.ingest.sample.world import Subject, body, photo

_PHOTOS = 6  # views of a subject
_OUT_OF_VIEW = (40.0, 0.0)


def rendered(thing: Subject, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Photo ``index`` of a subject of the sample world, uint8 [size, size, 3], and its mask, uint8 [size, size]."""
    view = photo(thing, index, _PHOTOS)
    return render(body(thing), view.view, view.place, size)


def empty_place(thing: Subject, index: int, size: int) -> np.ndarray:
    """The place of photo ``index`` without the subject."""
    view = photo(thing, index, _PHOTOS)
    return render(body(thing), replace(view.view, shift=_OUT_OF_VIEW), view.place, size)[0]


def pasted(image: np.ndarray, mask: np.ndarray, place: np.ndarray, rng: np.random.Generator, side: float) -> np.ndarray:
    """``place`` with the part of ``image`` that ``mask`` shows, its long side ``side`` of the place's, anywhere."""
    rows, columns = np.nonzero(mask.max(1) > 127)[0], np.nonzero(mask.max(0) > 127)[0]
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    scale = side * place.shape[0] / max(box[2] - box[0], box[3] - box[1])
    size = max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale))
    crop, shown = (
        Image.fromarray(layer).crop(box).resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
        for layer in (image, mask)
    )
    at = int(rng.integers(place.shape[1] - size[0] + 1)), int(rng.integers(place.shape[0] - size[1] + 1))
    result = Image.fromarray(place)
    result.paste(crop, at, shown)
    return np.asarray(result)


def crop_of(mask: np.ndarray) -> np.ndarray:
    """The rectangle around a mask, with a margin of a tenth of its height, as a mask."""
    rows, columns = np.nonzero(mask.max(1) > 127)[0], np.nonzero(mask.max(0) > 127)[0]
    margin = (rows[-1] - rows[0]) // 10
    crop = np.zeros_like(mask)
    crop[max(0, rows[0] - margin) : rows[-1] + margin + 1, max(0, columns[0] - margin) : columns[-1] + margin + 1] = 255
    return crop


def mirrored(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


def recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another hue, exchanged colour channels, or a tint."""
    kind = int(rng.integers(3))
    if kind == 0:
        hsv = np.array(Image.fromarray(image).convert("HSV"))
        hsv[..., 0] += np.uint8(rng.integers(40, 216))
        return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    if kind == 1:
        orders = [(1, 2, 0), (2, 0, 1), (1, 0, 2), (0, 2, 1), (2, 1, 0)]
        return np.ascontiguousarray(image[..., list(orders[int(rng.integers(5))])])
    return np.clip(image * rng.uniform(0.35, 1.3, 3), 0, 255).astype(np.uint8)


def blurred(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of 0.4 to 1 % of the image's side."""
    radius = float(rng.uniform(0.004, 0.010)) * image.shape[0]
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Saved at a quality of 60 to 90."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(60, 91)))
    return np.asarray(Image.open(buffer).convert("RGB"))


def resized(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3))


Plant = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator, int], np.ndarray]


def _on_place(tight: bool) -> Plant:
    def plant(
        image: np.ndarray, mask: np.ndarray, place: np.ndarray, rng: np.random.Generator, size: int
    ) -> np.ndarray:
        shown = mask if tight else crop_of(mask)
        return resized(pasted(image, shown, place, rng, float(rng.uniform(0.45, 0.95))), size)

    return plant


def _alone(image: np.ndarray, mask: np.ndarray, place: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """A square around the subject that fills the image."""
    rows, columns = np.nonzero(mask.max(1) > 127)[0], np.nonzero(mask.max(0) > 127)[0]
    side = min(image.shape[0], image.shape[1], round(1.2 * max(np.ptp(rows), np.ptp(columns)) + 2))
    top = int(np.clip((rows[0] + rows[-1] - side) // 2, 0, image.shape[0] - side))
    left = int(np.clip((columns[0] + columns[-1] - side) // 2, 0, image.shape[1] - side))
    return resized(np.ascontiguousarray(image[top : top + side, left : left + side]), size)


def _then(first: Plant, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Plant:
    return lambda image, mask, place, rng, size: change(first(image, mask, place, rng, size), rng)


def _mirrored_first(first: Plant) -> Plant:
    return lambda image, mask, place, rng, size: first(mirrored(image), mirrored(mask), place, rng, size)


_CUTOUT, _CROP = _on_place(True), _on_place(False)
PLANTS: dict[str, Plant] = {
    "cutout, moved and scaled": _CUTOUT,
    "cutout, mirrored": _mirrored_first(_CUTOUT),
    "cutout, recoloured": _then(_CUTOUT, recoloured),
    "cutout, blurred": _then(_CUTOUT, blurred),
    "cutout, JPEG": _then(_CUTOUT, jpeg),
    "crop, moved and scaled": _CROP,
    "crop, mirrored and recoloured": _then(_mirrored_first(_CROP), recoloured),
    "crop alone": _then(_alone, jpeg),
    "crop alone, mirrored": _mirrored_first(_alone),
    "whole photo, blurred": lambda image, mask, place, rng, size: blurred(resized(image, size), rng),
}
"""Kind -> the planted image, [size, size, 3], from a square photo, its mask, and an empty place."""
