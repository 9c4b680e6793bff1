"""Measure what a loader spends on one sample: seconds of a CPU core and bytes, on generated photos of a preset's sizes.

Nothing is read or downloaded: photos are noise at the sizes that snapshots have, and a small vocabulary replaces the
model's own.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from lookalike.data.images import decode, encode_jpeg
from lookalike.models.preprocess import RAGGED, Preprocessor
from lookalike.models.presets import Preset
from lookalike.models.tokenizer import build_tokenizer
from lookalike.pixels import crop_resize
from lookalike.scratch import scratch

_SHORT_SIDE, _LONG_SIDE = 512, 683  # pixels of a photo in a snapshot by default (shards.image_size), 3:4
_GRAIN = 8  # pixels of the noise, so that a JPEG has the size of a photo's
_REPEATS = 7


@dataclass(frozen=True)
class LoaderCost:
    """Cost of one sample."""

    seconds: float
    """Of one CPU core: decode, resize, make tiles, tokenise. Median, measured on this machine."""
    megabytes: float
    """10⁶ bytes that reach the rank: tokens, tiles, and images for the VAE."""


def measure(preset: Preset, references: int) -> LoaderCost:
    """Measure a sample with ``references`` references, whose images the VAE encodes in training."""
    rng = np.random.default_rng(0)
    photos = [_photo(rng) for _ in range(1 + references)]
    with scratch("loader-cost") as folder:
        tokenizer = build_tokenizer([])
        tokenizer.add_tokens([preset.mllm.image_token], special_tokens=True)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        preprocessor = Preprocessor(preset, folder / "tokenizer.json")
        prompt, taken = "a red mug " * 5, []
        for _ in range(_REPEATS + 1):
            started = time.thread_time()
            target, *others = (decode(photo) for photo in photos)
            columns = preprocessor([prompt], [others], [target], truncate_prompts=True, on_cut=lambda prompt, cut: None)
            taken.append(time.thread_time() - started)
    return LoaderCost(statistics.median(taken[1:]), nbytes(columns) / 1e6)


def nbytes(columns: dict[str, np.ndarray]) -> int:
    """Return the bytes of prepared columns."""
    ragged = (*RAGGED, "reference_latents")
    return sum(sum(row.nbytes for row in v) if name in ragged else v.nbytes for name, v in columns.items())


def _photo(rng: np.random.Generator) -> bytes:
    grains = rng.integers(0, 256, (_SHORT_SIDE // _GRAIN, _LONG_SIDE // _GRAIN, 3), np.uint8)
    return encode_jpeg(crop_resize(grains, _SHORT_SIDE, _LONG_SIDE))
