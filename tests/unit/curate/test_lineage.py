"""Diff and trace of two snapshots of drawn photos."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.data.images import decode
from lookalike.data.triplets import read_triplets
from lookalike.errors import ConfigError, InputError
from lookalike.storage import open_store, version_store
from pipelines.curate.diff import DiffConfig, diff, render_diff
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.blurry import Blurry
from pipelines.curate.gather import gather
from pipelines.curate.removals import HoldersWork, find_holders
from pipelines.curate.snapshot_tables import Snapshot
from pipelines.curate.takedown import pin
from pipelines.curate.trace import TraceConfig, render_trace, trace
from pipelines.curate.work import StageWork
from tests.drawn import world, write_raw
from tests.published import materialise

SHARP = 2000.0  # some of the drawn photos are less sharp


@pytest.fixture
def dataset(planned: Callable[..., StageWork], tmp_path: Path) -> str:
    """Version 1 of four things; version 2 with one more shard and a filter that takes more."""
    raw = write_raw(tmp_path / "raw", world(4, 4), per_shard=8)
    _publish(planned(raw), 1)
    write_raw(tmp_path / "more", world(5, 4)[16:])
    (tmp_path / "more" / "shard-000000.tar").rename(raw / "shard-000002.tar")
    _publish(planned(raw, filters=FiltersConfig(blurry=Blurry(min_sharpness=SHARP))), 2)
    return str(tmp_path / "dataset")


def _publish(work: StageWork, version: int) -> None:
    materialise(work, f"v{version:04d}")


def test_a_diff_has_settings_shards_images_and_triplets(dataset: str) -> None:
    changes = diff(DiffConfig(before=1, after=2, dataset=dataset))
    assert changes.settings == {"filters.blurry.min_sharpness": [12.0, SHARP]}
    assert changes.shards == {"new": ["shard-000002.tar"], "gone": [], "changed": []}
    fates = {(fate.before, fate.after): fate for fate in changes.images}
    assert sum(fate.images for fate in changes.images if fate.before == "not there") == 4
    blurry = fates["kept", "blurry"]
    assert blurry.images >= 1
    assert blurry.why == [f"filters.blurry.min_sharpness: 12.0 -> {SHARP}"]
    assert changes.unchanged + sum(fate.images for fate in changes.images if fate.before != "not there") == 16
    ids = [
        {
            split: {t.triplet_id for t in read_triplets(_version(dataset, v)) if t.split == split}
            for split in changes.triplets
        }
        for v in (1, 2)
    ]
    for split, counts in changes.triplets.items():
        old, new = ids[0][split], ids[1][split]
        assert counts == {"added": len(new - old), "removed": len(old - new), "kept": len(old & new)}
    text = render_diff(changes)
    assert f"filters.blurry.min_sharpness: 12.0 -> {SHARP}" in text
    assert "1 new: shard-000002.tar" in text


def test_a_snapshot_does_not_differ_from_itself(dataset: str) -> None:
    changes = diff(DiffConfig(before=2, after=2, dataset=dataset))
    assert (changes.settings, changes.images, changes.unchanged, changes.moved) == ({}, [], 20, 0)
    assert {counts["added"] + counts["removed"] for counts in changes.triplets.values()} == {0}
    with pytest.raises(InputError, match="no such object"):
        diff(DiffConfig(before=1, after=7, dataset=dataset))


def test_a_triplet_is_traced_to_its_raw_images(dataset: str) -> None:
    triplet = read_triplets(_version(dataset, 2))[0]
    (entry,) = [e for e in trace(TraceConfig(id=triplet.triplet_id, dataset=dataset)) if e["version"] == 2]
    assert [image["sha256"] for image in entry["images"]] == [triplet.target_image, *triplet.reference_images]
    for image in entry["images"]:
        parent, _, name = image["raw"].rpartition("/")
        data = open_store(parent).read_range(name, image["offset"], image["length"])
        assert decode(data).shape == (160, 160, 3)
        assert image["key"].startswith(triplet.subject)
    assert f"reference 0  {triplet.reference_images[0][:12]}" in render_trace([entry])


def test_an_image_is_traced_to_the_triplets_that_use_it(dataset: str) -> None:
    triplets = read_triplets(_version(dataset, 1))
    content = triplets[0].target_image
    users = {t.triplet_id for t in triplets if content in (t.target_image, *t.reference_images)}
    entries = trace(TraceConfig(id=content[:10], dataset=dataset))
    assert [entry["version"] for entry in entries] == [2, 1]
    assert entries[1]["triplets"] == len(users)
    assert {example["triplet_id"] for example in entries[1]["examples"]} <= users
    dropped = next(e for e in entries_of_dropped(dataset) if e["image"]["drop_reason"] == "blurry")
    assert dropped["triplets"] == 0
    assert "dropped: blurry" in render_trace([dropped])


def entries_of_dropped(dataset: str) -> list[dict]:
    import pyarrow.parquet as pq

    rows = pq.read_table(Path(dataset) / "v0002" / "images").to_pylist()
    contents = [row["sha256"] for row in rows if row["drop_reason"]]
    return [entry for c in contents for entry in trace(TraceConfig(id=c, dataset=dataset, version=2))]


def test_an_unknown_or_invalid_id_is_an_error(dataset: str) -> None:
    with pytest.raises(InputError, match=r"with this id in v0002, v0001 \('00000000'\)"):
        trace(TraceConfig(id="00000000", dataset=dataset))
    with pytest.raises(ConfigError, match="neither a triplet's id nor a content hash"):
        TraceConfig(id="cup", dataset=dataset)
    with pytest.raises(InputError, match="no complete snapshot"):
        trace(TraceConfig(id="00000000", dataset=f"{dataset}/nothing"))


def _version(dataset: str, number: int):
    return version_store(open_store(dataset), number)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros in the middle": lambda data: data[:8] + bytes(len(data) // 2) + data[8 + len(data) // 2 :],
    "another table": lambda data: _other_table(),
}


def _other_table() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2, 3]}), buffer)
    return buffer.getvalue()


def _first(dataset: str, table: str) -> str:
    return min(path.name for path in (Path(dataset) / "v0002" / table).iterdir())


def test_damaged_tables_are_errors_that_name_them(dataset: str) -> None:
    triplet = read_triplets(_version(dataset, 1))[0]
    (Path(dataset) / "list.txt").write_text("key:nothing\n")
    store = open_store(dataset)
    snapshot = Snapshot.of(open_store(dataset), 2)
    parts = len(snapshot.table("images").rows)
    holders = HoldersWork(pin(f"{dataset}/list.txt", store), ((snapshot, 0, parts),))
    asked_of = {f"images/{_first(dataset, 'images')}": triplet.target_image}
    asked_of |= {f"triplets/{_first(dataset, 'triplets')}": triplet.triplet_id}
    for name, asked in asked_of.items():
        file = Path(dataset) / "v0002" / name
        whole = file.read_bytes()
        for damage, make in DAMAGE.items():
            file.write_bytes(make(whole))
            asks: list[Callable[[], object]] = [
                lambda: trace(TraceConfig(id=asked, dataset=dataset)),  # noqa: B023  # is called at once
                lambda: diff(DiffConfig(before=1, after=2, dataset=dataset)),
            ]
            if name.startswith("images"):
                asks.append(lambda: find_holders(holders, 0))
            for ask in asks:
                with pytest.raises(InputError) as refused:
                    ask()
                assert dataset in str(refused.value), (name, damage)
        file.write_bytes(whole)


def test_damaged_manifests_are_errors_that_name_them(dataset: str) -> None:
    for manifest in ("{}", '{"inputs": []}', '{"version": 2, "inputs": {}}', "[", ""):
        (Path(dataset) / "v0002" / "manifest.json").write_text(manifest)
        with pytest.raises(InputError, match=re.escape(dataset)):
            trace(TraceConfig(id="ab" * 32, dataset=dataset))
        with pytest.raises(InputError, match=re.escape(dataset)):
            diff(DiffConfig(before=1, after=2, dataset=dataset))


def test_a_damaged_index_table_is_an_error_and_is_rewritten(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 2))
    work = planned(raw)
    (file,) = (tmp_path / "dataset" / "work" / "rows").rglob("*.parquet")
    whole = file.read_bytes()
    inputs = replace(work.inputs, config=work.inputs.config | {"seed": 7})  # so that nothing is gathered yet
    ungathered = replace(StageWork.of(work.config, inputs), sample=work.sample)
    for damage in DAMAGE.values():
        file.write_bytes(damage(whole))
        with pytest.raises(InputError, match=rf"{file.name}.*remove it"):
            gather(ungathered, next(ungathered.groups()))
    file.unlink()  # as the error says
    assert planned(raw).images == work.images
    assert file.read_bytes() == whole
