"""Write raw shards of any size from a folder of photos."""

import json
import os
from itertools import cycle, islice
from pathlib import Path

import pytest

from lookalike.data.shards import write_tar

VARIABLE = "LOOKALIKE_BENCH_PHOTOS"


def bench_photos() -> list[Path]:
    """The photos ``<subject>/<nn>.jpg`` of the folder that LOOKALIKE_BENCH_PHOTOS names; skips without it."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} does not name a folder of photos")
    return sorted(Path(folder).rglob("*.jpg"))


def write_repeated(raw: Path, photos: list[Path], shards: int, per_shard: int) -> Path:
    """Shards below ``raw`` that repeat ``photos``, each time as other subjects; existing shards are reused."""
    raw.mkdir(parents=True, exist_ok=True)
    numbered = ((i // len(photos), path) for i, path in enumerate(cycle(photos)))
    for shard in range(shards):
        samples = [_sample(number, path) for number, path in islice(numbered, per_shard)]
        path = raw / f"shard-{shard:06d}.tar"
        if not path.exists():
            part = path.with_suffix(".part")
            write_tar(part, samples)
            part.rename(path)
    return raw


def _sample(repetition: int, path: Path) -> tuple[str, dict[str, bytes]]:
    subject = f"{path.parent.name}-{repetition:04d}"
    label = {"subject": subject, "class": path.parent.name, "caption": f"a {path.parent.name}"}
    return f"{subject}-{path.stem}", {"jpg": path.read_bytes(), "json": json.dumps(label).encode()}
