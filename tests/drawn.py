"""Draw photos for tests: subjects of one form and two colours, rotated from view to view, on changing grounds."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lookalike.data.shards import write_tar

_COLOURS = [(200, 40, 40), (40, 90, 200), (30, 150, 60), (230, 180, 30), (130, 50, 160), (240, 120, 30), (20, 20, 20)]


@dataclass(frozen=True)
class Photo:
    """One sample of a raw shard."""

    key: str
    jpeg: bytes
    subject: str
    metadata: dict[str, Any] | None = None

    def sample(self) -> tuple[str, dict[str, bytes]]:
        """The sample as :func:`write_tar` takes it."""
        metadata = {
            "subject": self.subject,
            "class": "thing",
            "caption": f"a thing, {self.key}",
            "licence": "CC0-1.0",
            "source": "drawn",
        }
        return self.key, {"jpg": self.jpeg, "json": json.dumps(self.metadata or metadata).encode()}

    def under(self, key: str, subject: str | None = None) -> "Photo":
        """The same photo as another sample."""
        return replace(self, key=key, subject=subject or self.subject)


def draw(subject: int, view: int, side: int = 160) -> np.ndarray:
    """View ``view`` of thing number ``subject``: uint8 [side, side, 3]."""
    random = np.random.default_rng([subject, view])
    image = Image.fromarray(_ground(view, random, side))
    pen = ImageDraw.Draw(image)
    first = _COLOURS[subject % len(_COLOURS)]
    second = _COLOURS[(subject // len(_COLOURS) + subject + 1) % len(_COLOURS)]
    turn = np.radians(40 * view + random.uniform(-8, 8))
    middle = side / 2 + random.uniform(-0.1, 0.1, 2) * side
    radius = side * (0.24 + 0.05 * (view % 4))
    corners = 3 + subject % 4
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    outline = [(middle[0] + radius * np.cos(a), middle[1] + radius * np.sin(a)) for a in angles]
    pen.polygon(outline, fill=first, outline=(10, 10, 10), width=2)
    inner = [(middle[0] + (x - middle[0]) * 0.5, middle[1] + (y - middle[1]) * 0.5) for x, y in outline]
    pen.polygon(inner, fill=second)
    return np.asarray(image)


def _ground(kind: int, random: np.random.Generator, side: int) -> np.ndarray:
    """A ground of stripes, checks, a gradient or one colour, with some noise."""
    y, x = np.mgrid[:side, :side] / side
    pattern = (np.sin(40 * x), np.sign(np.sin(25 * x) * np.sin(25 * y)), 2 * y - 1, 0 * x)[kind % 4]
    colour = np.random.default_rng(kind).integers(70, 190, 3)
    noisy = colour + 45 * pattern[..., None] + random.normal(0, 10, (side, side, 3))
    return np.asarray(noisy.clip(0, 255), np.uint8)


def jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """``image`` as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def photo(subject: int, view: int, side: int = 160) -> Photo:
    """View ``view`` of thing number ``subject`` as a sample."""
    return Photo(f"thing{subject:02d}-{view}", jpeg(draw(subject, view, side)), f"thing{subject:02d}")


def world(subjects: int = 6, views: int = 4) -> list[Photo]:
    """All views of some things."""
    return [photo(subject, view) for subject in range(subjects) for view in range(views)]


def write_raw(folder: Path, photos: list[Photo], per_shard: int = 10) -> Path:
    """Raw shards of ``photos`` below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(photos), per_shard)):
        write_tar(folder / f"shard-{number:06d}.tar", (p.sample() for p in photos[first : first + per_shard]))
    return folder
