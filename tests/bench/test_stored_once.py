"""Measure the bytes of packs, and those that a second version adds.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k stored_once -s

Writes results/stored-once.json. One photo in a hundred is replaced before the second version.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.data.images import decode, encode_jpeg
from lookalike.data.shards import write_tar
from lookalike.data.triplets import read_table
from lookalike.storage import open_store, version_store
from pipelines.curate import CurateConfig, curate
from tests.bench.measured import keep
from tests.bench.repeated import bench_photos

PER_SHARD, REPLACED = 50, 0.01

pytestmark = pytest.mark.timeout(3600)


def write_photos(raw: Path, photos: list[Path], replaced: frozenset[int] = frozenset()) -> None:
    """Raw shards of the photos, each once; those with a number in ``replaced`` are mirrored."""
    raw.mkdir(exist_ok=True)
    for shard, first in enumerate(range(0, len(photos), PER_SHARD)):
        samples = []
        for number in range(first, min(first + PER_SHARD, len(photos))):
            path = photos[number]
            data = encode_jpeg(np.ascontiguousarray(decode(path.read_bytes())[:, ::-1]))
            label = {"subject": path.parent.name, "class": path.parent.name}
            payload = {"jpg": data if number in replaced else path.read_bytes(), "json": json.dumps(label).encode()}
            samples.append((f"{path.parent.name}-{path.stem}", payload))
        write_tar(raw / f"shard-{shard:06d}.tar", samples)


def measured(dataset: Path) -> dict[str, Any]:
    """Curate a version and return its counts, and the bytes of all packs of the dataset."""
    result = curate(CurateConfig(raw=str(dataset.parent / "raw"), dataset=str(dataset)))
    assert result.new
    rows = read_table(version_store(open_store(str(dataset)), result.version)).to_pylist()
    names = ("images_in", "images_kept", "images_stored", "bytes_stored", "images_reused", "bytes_reused")
    return {
        **{name: result.manifest["counts"][name] for name in names},
        "triplets": len(rows),
        "bytes_with_a_copy_for_each_triplet": sum(r["target_length"] + sum(r["reference_lengths"]) for r in rows),
        "packs_bytes": sum(path.stat().st_size for path in (dataset / "shards").iterdir()),
    }


def test_images_are_stored_once(tmp_path: Path) -> None:
    photos = bench_photos()
    write_photos(tmp_path / "raw", photos)
    first = measured(tmp_path / "dataset")
    count = max(1, round(REPLACED * len(photos)))
    write_photos(tmp_path / "raw", photos, frozenset(range(0, len(photos), len(photos) // count)[:count]))
    second = measured(tmp_path / "dataset")
    images = first["bytes_stored"]
    record = {
        "command": "LOOKALIKE_BENCH_PHOTOS=dreambooth-dev python -m pytest tests/bench -k stored_once -s",
        "versions": [first, second],
        "replaced_photos": count,
        "packs_per_byte_of_different_images": round(first["packs_bytes"] / images, 4),
        "copies_without_packs": round(first["bytes_with_a_copy_for_each_triplet"] / images, 2),
        "second_version_adds": round(second["packs_bytes"] / first["packs_bytes"] - 1, 4),
    }
    keep("stored-once", record)
    assert record["packs_per_byte_of_different_images"] <= 1.1
    assert record["second_version_adds"] <= 0.03
