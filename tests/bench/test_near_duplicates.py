"""Measure how ``near_duplicate`` finds changed copies of photos.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k near_duplicates -s

FOLDER holds ``<subject>/<nn>.jpg``. Writes results/near-duplicates.json: the share of copies that are found, and how
many pairs of different photos of one subject count as duplicates.
"""

import io
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.annotators.embedder import load_embedder
from lookalike.data.images import decode
from pipelines.curate.features import FEATURE_SIDE, features
from pipelines.curate.filters.near_duplicate import NearDuplicate
from tests.bench.measured import keep
from tests.bench.repeated import bench_photos

pytestmark = pytest.mark.timeout(3600)


def _cut(share: float) -> Callable[[Image.Image], Image.Image]:
    def cut(image: Image.Image) -> Image.Image:
        x, y = max(1, int(image.width * share)), max(1, int(image.height * share))
        return image.crop((x, y, image.width - x, image.height - y))

    return cut


def _scaled(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.LANCZOS)


COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {  # and the quality they are saved at
    "saved again": (lambda image: image, 60),
    "cut by 1/40 at each edge": (_cut(1 / 40), 92),
    "cut by 1/20 at each edge": (_cut(1 / 20), 92),
    "cut by 1/10 at each edge": (_cut(1 / 10), 92),
    "scaled to 7/8": (_scaled(7 / 8), 80),
    "scaled to 1/2": (_scaled(1 / 2), 80),
    "brighter by 15 %": (lambda image: image.point(lambda value: min(255, round(value * 1.15))), 92),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 92),
}
BEYOND_IT = ("cut by 1/10 at each edge", "mirrored")  # reported


def test_copies_are_found_and_other_photos_of_a_subject_are_not() -> None:
    import torch

    torch.set_num_threads(1)
    embed, rule = load_embedder("efficientnet-lite0-colour"), NearDuplicate()
    subjects: dict[str, list[bytes]] = defaultdict(list)
    for path in bench_photos():
        subjects[path.parent.name].append(path.read_bytes())

    def look(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        pixels = [decode(data, FEATURE_SIDE + 8) for data in files]
        vectors = np.asarray(embed(pixels), np.float16).astype(np.float32)
        hashes = np.array([features(image)["phash"] for image in pixels], np.uint64)
        return hashes, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    found: dict[str, list[bool]] = defaultdict(list)
    different = taken_for_one = 0
    for files in subjects.values():
        hashes, vectors = look(files)
        one = np.round(vectors @ vectors.T, 3) >= rule.required(np.bitwise_count(hashes[:, None] ^ hashes[None]))
        others = one[np.triu_indices(len(files), 1)]
        different, taken_for_one = different + len(others), taken_for_one + int(others.sum())
        for name, (change, quality) in COPIES.items():
            copies = [changed_copy(data, change, quality) for data in files]
            their_hashes, their_vectors = look(copies)
            similarity = np.round((vectors * their_vectors).sum(1), 3)
            found[name] += (similarity >= rule.required(np.bitwise_count(hashes ^ their_hashes))).tolist()
    record: dict[str, Any] = {
        "command": "LOOKALIKE_BENCH_PHOTOS=dreambooth-dev python -m pytest tests/bench -k near_duplicates -s",
        "photographs": sum(map(len, subjects.values())),
        "share_of_copies_found": {name: round(float(np.mean(hits)), 3) for name, hits in found.items()},
        "pairs_of_different_photographs": different,
        "of_them_taken_for_one": taken_for_one,
    }
    keep("near-duplicates", record)
    for name, share in record["share_of_copies_found"].items():
        assert share >= 0.99 or name in BEYOND_IT, name
    assert taken_for_one <= 0.01 * different


def changed_copy(data: bytes, change: Callable[[Image.Image], Image.Image], quality: int) -> bytes:
    """A photo after a change of :data:`COPIES`, saved as JPEG at that quality."""
    buffer = io.BytesIO()
    change(Image.open(io.BytesIO(data)).convert("RGB")).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
