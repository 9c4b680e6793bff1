"""Images and tables of a snapshot that were replaced after it was curated are refused before they are used."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.config import fingerprint
from lookalike.data.parts import write_part
from lookalike.data.triplet_files import load_images, load_latents
from lookalike.data.triplets import SCHEMA, read_table, read_triplets
from lookalike.errors import InputError
from lookalike.storage import Store, open_store, read_manifest
from pipelines.train.samples import TripletSource, prepare
from tests.poisoned import pack_of, write_snapshot
from tests.snapshots import write_tables


@pytest.fixture
def version(tmp_path: Path) -> Store:
    """A version whose rows have the hashes of their images, as curation writes them."""
    return open_store(write_snapshot(tmp_path / "dataset", [None, None]) + "/v0001")


def _write_table(folder: Path, rows: list[dict]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    written = write_tables(open_store(str(folder)), pa.Table.from_pylist(rows, SCHEMA))
    manifest |= written | {"files": manifest["files"] | written["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _replace(version: Store, offset: int, data: bytes) -> None:
    key = pack_of(version)
    pack = version.parent.read(key)
    version.parent.write(key, pack[:offset] + data + pack[offset + len(data) :])


@pytest.mark.parametrize("part", ["target", "reference"])
def test_replaced_image_is_refused(version: Store, part: str) -> None:
    """The image is replaced by another image of the dataset, of the same length."""
    first, second = read_triplets(version)
    load_images(version, first)
    offset = first.target_offset if part == "target" else first.reference_offsets[0]
    image = version.parent.read_range(second.target_shard, second.target_offset, second.target_length)
    _replace(version, offset, image[: first.target_length if part == "target" else first.reference_lengths[0]])
    with pytest.raises(InputError, match=r"(the target|reference 0) has changed since it was curated: .*its row has"):
        load_images(version, first)
    load_images(version, second)


@pytest.mark.parametrize("of", ["target", "reference"])
def test_replaced_latents_are_refused(version: Store, of: str) -> None:
    row = read_table(version).to_pylist()[0]
    load_latents(version, row)
    start, length = (row[f"{of}_latents_{what}{'s' if of == 'reference' else ''}"] for what in ("offset", "length"))
    end = start + length if of == "target" else start[0] + length[0]
    _replace(version, end - 8, bytes(8))
    with pytest.raises(InputError, match="the latents has changed since it was curated"):
        load_latents(version, row)


def test_replaced_table_is_refused(version: Store) -> None:
    rows = read_table(version).to_pylist()
    changed = pa.Table.from_pylist([{**row, "prompt": "someone else"} for row in rows], SCHEMA)
    write_part(version, "triplets/train-000000.parquet", changed)
    with pytest.raises(InputError, match="a part of a table of the snapshot has changed"):
        read_triplets(version)
    write_tables(version, changed)
    with pytest.raises(InputError, match=r"a file of the snapshot has changed: .*lists/train-00000\.parquet"):
        read_triplets(version)


def test_run_keeps_reading_the_snapshot_it_started_with(version: Store, bundle_dir: Path) -> None:
    """Table and manifest are replaced together, between the driver and its workers."""
    sha256 = fingerprint(read_manifest(version.parent, 1))
    source = TripletSource(version.uri, "train", str(bundle_dir), snapshot_sha256=sha256)
    assert len(source.table()) == 2
    rows = read_table(version).to_pylist()
    _write_table(Path(version.uri.removeprefix("file://")), rows[:1])
    moved = TripletSource(f"{version.uri}/../v0001", "train", str(bundle_dir), snapshot_sha256=sha256)
    with pytest.raises(InputError, match="manifest of the snapshot has changed"):
        moved.table()


def test_replaced_image_is_not_trained_on(version: Store, bundle_dir: Path) -> None:
    first = read_triplets(version)[0]
    _replace(version, first.target_offset + first.target_length - 20, bytes(8))
    columns = prepare(TripletSource(version.uri, "train", str(bundle_dir)), np.array([0, 1]))
    assert columns["weight"].tolist() == [0.0, 1.0]
    assert "has changed since it was curated" in columns["reason"][0]
