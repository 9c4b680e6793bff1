"""A sample that cannot be read or prepared is a blank row with a reason; its neighbours do not change."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.data.triplet_files import ShardError, load_images
from lookalike.data.triplets import read_table, read_triplets
from lookalike.errors import UnreachableError
from lookalike.storage import open_store
from lookalike.storage.local import LocalStore
from lookalike.training.epoch_plan import PADDING, EpochPlan
from pipelines.train import samples
from pipelines.train.in_memory import KeptSamples, kept_batches
from pipelines.train.samples import TripletSource, prepare, validation_indices
from tests.poisoned import BYTES, HARMLESS, POISONS, pack_of, rotten, write_snapshot
from tests.snapshots import write_tables

KINDS: list[str | None] = [None, *POISONS, *HARMLESS, None]


@pytest.fixture(scope="module")
def poisoned(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TripletSource:
    """One row of each kind, with latents."""
    dataset = write_snapshot(tmp_path_factory.mktemp("poisoned"), KINDS)
    return TripletSource(f"{dataset}/v0001", "train", str(bundle_dir), latents=True)


@pytest.fixture(scope="module")
def clean(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TripletSource:
    dataset = write_snapshot(tmp_path_factory.mktemp("clean"), [None] * len(KINDS))
    return TripletSource(f"{dataset}/v0001", "train", str(bundle_dir), latents=True)


def test_unusable_sample_has_a_reason_and_others_are_kept(poisoned: TripletSource, clean: TripletSource) -> None:
    rows = np.arange(len(KINDS))
    found, expected = prepare(poisoned, rows), prepare(clean, rows)
    for index, kind in enumerate(KINDS):
        wrong = kind in POISONS
        assert bool(found["reason"][index]) == wrong, (kind, found["reason"][index])
        assert found["weight"][index] == (not wrong), kind
        assert not found["fatal"][index], kind
        for name in ("references", "target", "tiles", "reference_mask", "target_latents", "reference_latents"):
            if not wrong:
                assert (found[name][index] == expected[name][index]).all(), (kind, name)
            assert np.isfinite(found[name][index].astype(np.float64)).all(), (kind, name)
    assert found["weight"].dtype == np.float32
    ids = found["sample_id"].tolist()
    assert ids[:3] == ["sample000", "sample001", "sample002"]
    assert ids[KINDS.index("id is null")] == f"row {KINDS.index('id is null')}"
    reasons = dict(zip(KINDS, found["reason"].tolist(), strict=True))
    assert "the target does not decode" in reasons["target is no image"]
    assert "the reference has 20000x40 pixels" in reasons["reference is 20000x40"]
    assert "mean square is nan" in reasons["latents are nan"]
    assert "it has no reference" in reasons["no reference list"]
    assert not any("\n" in reason or len(reason) > 500 for reason in reasons.values())


def test_padding_after_an_unusable_first_row(bundle_dir: Path, tmp_path: Path) -> None:
    dataset = write_snapshot(tmp_path, ["target is bit rot", None, None])
    source = TripletSource(f"{dataset}/v0001", "train", str(bundle_dir))
    for columns in (prepare(source, np.array([1, PADDING])), KeptSamples(source).take(np.array([1, PADDING]))):
        assert columns["weight"].tolist() == [1, 0]
        assert columns["reason"].tolist() == ["", ""], "padding is no failure"
    assert KeptSamples(source).take(np.array([0, 2]))["weight"].tolist() == [0, 1]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_step_has_the_same_failures_at_any_number_of_ranks(poisoned: TripletSource, ranks: int) -> None:
    plan = EpochPlan(len(KINDS), 6, seed=1)
    steps, alone = range(2 * plan.steps_per_epoch), {}
    for columns in kept_batches(poisoned, plan, steps, 0, 1, 6):
        alone[int(columns["step"][0])] = columns
    shares = [list(kept_batches(poisoned, plan, steps, rank, ranks, 6 // ranks)) for rank in range(ranks)]
    for step, parts in zip(steps, zip(*shares, strict=True), strict=True):
        for name in ("sample_id", "reason", "weight"):
            assert np.concatenate([part[name] for part in parts]).tolist() == alone[step][name].tolist()
        assert sum(int(part["failed_in_step"][0]) for part in parts) == alone[step]["failed_in_step"][0]


def test_unreadable_shard_is_not_counted_as_an_unusable_sample(clean: TripletSource, tmp_path: Path) -> None:
    for name, spoil in {
        "missing": Path.unlink,
        "empty": lambda path: path.write_bytes(b""),
    }.items():
        shutil.copytree(Path(clean.snapshot_uri).parent, tmp_path / name)
        version = tmp_path / name / "v0001"
        pack = pack_of(open_store(str(version)))
        spoil(tmp_path / name / pack)
        with pytest.raises(ShardError, match=rf"a shard of the snapshot cannot be read.*{pack}.*restore it"):
            load_images(open_store(str(version)), read_triplets(open_store(str(version)))[0])
        found = prepare(TripletSource(str(version), "train", clean.bundle_uri), np.array([0, 3]))
        assert found["fatal"].tolist() == [True, True]
        assert "restore it" in found["reason"][0]


def test_unreadable_part_of_the_table_is_fatal_for_its_rows_only(clean: TripletSource, tmp_path: Path) -> None:
    for name, spoil in {
        "missing": Path.unlink,
        "changed": lambda path: path.write_bytes(rotten(path.read_bytes())),
    }.items():
        version = tmp_path / name / "v0001"
        shutil.copytree(Path(clean.snapshot_uri).parent, version.parent)
        store = open_store(str(version))
        manifest = json.loads(store.read("manifest.json"))
        store.write("manifest.json", json.dumps(manifest | write_tables(store, read_table(store), 20)).encode())
        spoil(version / "triplets" / "train-000001.parquet")
        found = prepare(TripletSource(str(version), "train", clean.bundle_uri), np.array([0, 25, 19, 20, 45]))
        assert found["fatal"].tolist() == [False, True, False, True, False]
        assert found["weight"].tolist() == [1, 0, 1, 0, 1]
        assert found["sample_id"].tolist() == ["sample000", "row 25", "sample019", "row 20", "sample045"]
        what, value, _ = json.loads(found["reason"][1])
        assert "train-000001.parquet" in f"{what} {value}"


def test_changed_list_of_parts_is_fatal(clean: TripletSource, tmp_path: Path) -> None:
    shutil.copytree(Path(clean.snapshot_uri).parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "v0001" / "lists" / "train-00000.parquet").write_bytes(b"")
    found = prepare(TripletSource(str(tmp_path / "v0001"), "train", clean.bundle_uri), np.array([0, 3]))
    assert found["fatal"].tolist() == [True, True]
    assert "a file of the snapshot has changed" in found["reason"][0]


@pytest.mark.parametrize("latents", [True, False])
def test_kept_samples_equal_prepared_ones(poisoned: TripletSource, latents: bool) -> None:
    source = replace(poisoned, latents=latents)
    rows = np.array([5, 0, len(KINDS) - 1, 5, PADDING, 17])
    kept, prepared = KeptSamples(source), prepare(source, rows)
    for _ in range(2):  # the second time from memory
        taken = kept.take(rows)
        assert taken.keys() == prepared.keys()
        for name, values in prepared.items():
            assert taken[name].shape == values.shape
            assert all(np.array_equal(one, other) for one, other in zip(taken[name], values, strict=True)), name


def test_samples_hold_what_the_model_reads_and_no_more(clean: TripletSource) -> None:
    """One reference of two: a uint8 tile of 64², and either images or float16 latents for the VAE's part."""
    for latents, pixels in ((True, 0), (False, 3 * 64 * 64)):
        columns = prepare(replace(clean, latents=latents), np.array([0, 1]))
        assert [row.nbytes for row in columns["tiles"]] == [3 * 64 * 64] * 2
        assert [row.nbytes for row in columns["references"]] == [pixels] * 2
        assert columns["target"].nbytes == 2 * pixels
        assert ("target_latents" in columns) == latents
    whole = prepare(clean, np.array([0, 1]))
    assert whole["target_latents"].dtype == whole["reference_latents"][0].dtype == np.float16
    assert [row.shape for row in whole["reference_latents"]] == [(1, 64, 16)] * 2


def test_validation_rows_are_spread_over_a_split_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    source = TripletSource("none", "validation", "none")
    for rows in (3, 10**9):
        monkeypatch.setattr(samples, "_table", lambda *_, rows=rows: range(rows))
        chosen = validation_indices(source, 64)
        assert chosen.tolist() == validation_indices(source, 64).tolist()
        assert len(set(chosen.tolist())) == min(rows, 64)
        assert (chosen[:3] == chosen[3:6]).all() == (rows == 3)
    assert np.histogram(chosen, bins=4, range=(0, 10**9))[0].min() > 4


def test_truncated_shard_loses_the_samples_after_the_cut(clean: TripletSource, tmp_path: Path) -> None:
    shutil.copytree(Path(clean.snapshot_uri).parent, tmp_path / "cut")
    version = str(tmp_path / "cut" / "v0001")
    shard = tmp_path / "cut" / pack_of(open_store(version))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    found = prepare(TripletSource(version, "train", clean.bundle_uri), np.arange(len(KINDS)))
    assert 5 < (found["weight"] == 0).sum() < len(KINDS) - 5
    assert not found["fatal"].any()
    assert "shorter than its index entry" in found["reason"][-1]


def test_unreachable_store_is_not_counted_as_an_unusable_sample(
    clean: TripletSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(clean, np.array([0]))  # reads the table

    def refuse(store: LocalStore, key: str, offset: int, length: int) -> bytes:
        raise UnreachableError("no answer", value=key, fix="try again")

    monkeypatch.setattr(LocalStore, "read_range", refuse)
    with pytest.raises(UnreachableError):
        prepare(clean, np.array([0]))


def test_every_listed_kind_of_damage_is_made() -> None:
    assert len(BYTES) > 10
    assert len(POISONS) > 30
