import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.data.images import encode_jpeg
from lookalike.data.shards import write_tar
from lookalike.data.triplets import SCHEMA, Triplet, load_images, read_table, read_triplets
from lookalike.errors import InputError
from lookalike.storage import Store, open_store
from tests.snapshots import write_tables


def flat(value: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def version(tmp_path: Path) -> Store:
    """A version with two triplets: one reference, and two."""
    store = open_store(str(tmp_path))
    (tmp_path / "shards").mkdir()
    samples = [
        ("one", {"ref0.jpg": encode_jpeg(flat(10)), "target.jpg": encode_jpeg(flat(20))}),
        (
            "two",
            {f"ref{i}.jpg": encode_jpeg(flat(100 + 50 * i)) for i in range(2)} | {"target.jpg": encode_jpeg(flat(200))},
        ),
    ]
    rows = []
    written = write_tar(tmp_path / "shards" / "train-000000.tar", samples)
    for sample, split in zip(written, ("train", "validation"), strict=True):
        references = [member for name, member in sample.members.items() if name.startswith("ref")]
        rows.append(
            {
                "triplet_id": sample.key,
                "split": split,
                "subject": f"subject {sample.key}",
                "class_name": "thing",
                "prompt": "a thing",
                "shard": "shards/train-000000.tar",
                "target_offset": sample.members["target.jpg"].offset,
                "target_length": sample.members["target.jpg"].length,
                "reference_offsets": [member.offset for member in references],
                "reference_lengths": [member.length for member in references],
                "reference_similarities": [0.5] * len(references),
                "target_image": "t",
                "reference_images": ["r"] * len(references),
            }
        )
    manifest = write_tables(store, pa.Table.from_pylist(rows, SCHEMA)) | {"files": None}
    store.write("manifest.json", json.dumps(manifest).encode())
    return store


def test_images_are_read_by_range(version: Store) -> None:
    one, two = read_triplets(version)
    target, references = load_images(version, one)
    assert target.mean() == 20
    assert [image.mean() for image in references] == [10]
    target, references = load_images(version, two)
    assert target.shape == (20, 30, 3)
    assert [image.mean() for image in references] == [100, 150]


def test_rows_of_arrow_and_numpy_are_accepted(version: Store) -> None:
    row = read_table(version, "validation").to_pylist()[0]
    as_numpy = {
        name: np.array(value) if isinstance(value, list) else np.array([value])[0] for name, value in row.items()
    }
    assert Triplet.from_row(row) == Triplet.from_row(as_numpy) == read_triplets(version, "validation")[0]
    assert load_images(version, row)[0].mean() == 200
    assert isinstance(Triplet.from_row(as_numpy).target_offset, int)


def test_split_without_triplets_is_an_error(version: Store) -> None:
    version.write("manifest.json", json.dumps(write_tables(version, read_table(version, "train"))).encode())
    with pytest.raises(InputError, match="no validation rows"):
        read_table(version, "validation")
