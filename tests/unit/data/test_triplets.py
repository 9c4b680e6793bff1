"""Triplets are read by range from packs of images, which their rows name, with an error for each damaged row."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.data.images import encode_jpeg
from lookalike.data.triplet_files import Loaded, ShardError, load_images, load_latents, load_many, read_files
from lookalike.data.triplets import SCHEMA, Triplet, read_table, read_triplets
from lookalike.errors import InputError
from lookalike.storage import Store, open_store
from lookalike.storage.local import LocalStore
from tests.poisoned import pack_of, write_snapshot
from tests.snapshots import write_pack, write_tables

FILES = {value: encode_jpeg(np.full((20, 30, 3), value, np.uint8)) for value in (10, 20, 100, 150, 200)}


@pytest.fixture
def version(tmp_path: Path) -> Store:
    """A version with two triplets: one reference, and two that lie in another pack."""
    dataset = open_store(str(tmp_path))
    places = {}
    for values in ([10, 20, 200], [100, 150]):
        pack, samples = write_pack(dataset, [(f"image{value}", {"jpg": FILES[value]}) for value in values])
        places |= {v: (pack, sample.members["jpg"]) for v, sample in zip(values, samples, strict=True)}

    def row(name: str, split: str, target: int, references: list[int]) -> dict[str, Any]:
        hashes = {value: hashlib.sha256(data).hexdigest() for value, data in FILES.items()}
        return {
            **{"triplet_id": name, "split": split, "subject": f"subject {name}", "class_name": "thing"},
            **{"prompt": "a thing", "target_image": "t", "reference_images": ["r"] * len(references)},
            **{"target_shard": places[target][0], "reference_shards": [places[v][0] for v in references]},
            **{f"target_{what}": getattr(places[target][1], what) for what in ("offset", "length")},
            **{
                f"reference_{what}s": [getattr(places[v][1], what) for v in references] for what in ("offset", "length")
            },
            **{"target_sha256": hashes[target], "reference_sha256s": [hashes[v] for v in references]},
            "reference_similarities": [0.5] * len(references),
        }

    rows = [row("one", "train", 20, [10]), row("two", "validation", 200, [100, 150])]
    store = dataset.child("v0001")
    store.write("manifest.json", json.dumps(write_tables(store, pa.Table.from_pylist(rows, SCHEMA))).encode())
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
    with pytest.raises(InputError, match="no validation triplets"):
        read_table(version, "validation")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The key of each range request to a pack."""
    keys: list[str] = []
    read_range = LocalStore.read_range

    def count(store: LocalStore, key: str, offset: int, length: int) -> bytes:
        if key.startswith("shards/"):
            keys.append(key)
        return read_range(store, key, offset, length)

    monkeypatch.setattr(LocalStore, "read_range", count)
    return keys


def test_batch_is_read_by_one_request_a_neighbourhood(version: Store, requests: list[str]) -> None:
    rows = [*read_triplets(version), *read_triplets(version)]
    loaded = load_many(version, rows)
    assert [item.target.mean() for item in loaded if isinstance(item, Loaded)] == [20, 200, 20, 200]
    assert len(requests) == len(set(requests)) == 2


def test_errors_of_a_batch_belong_to_their_rows(tmp_path: Path) -> None:
    kinds = [None, "target is bit rot", "shard is null", None, "latents break off", "offset behind the end"]
    version = open_store(write_snapshot(tmp_path, kinds) + "/v0001")
    rows = read_table(version).to_pylist()
    files = read_files(version, rows)
    assert [isinstance(item, InputError) for item in files] == [False, False, True, False, False, True]
    loaded = list(load_many(version, rows, latents=True))
    assert [isinstance(item, InputError) for item in loaded] == [False, True, True, False, True, True]
    assert isinstance(loaded[0], Loaded)
    assert loaded[0].target_latents is not None
    assert (loaded[0].target_latents == load_latents(version, rows[0])[0]).all()
    version.parent.delete(pack_of(version))
    lost = load_many(version, rows)
    assert [isinstance(item, ShardError) for item in lost] == [True, True, False, True, True, True]


def test_version_without_latents_says_so(version: Store) -> None:
    with pytest.raises(InputError, match="the triplet has no latents"):
        load_latents(version, read_table(version).to_pylist()[0])
