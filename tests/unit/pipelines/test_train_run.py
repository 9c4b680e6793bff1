"""A run's identity, and the settings of Ray Train for one attempt."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from lookalike.config import fingerprint
from lookalike.data.triplets import SCHEMA, read_table
from lookalike.errors import ConflictError, InputError
from lookalike.storage import open_store
from lookalike.storage.claim import RECORD, read_claim
from lookalike.training.config import TrainConfig
from lookalike.training.epoch_plan import ORDER
from pipelines.train import run
from pipelines.train.samples import TripletSource
from pipelines.train.worker_group import attempt_config
from tests.poisoned import write_snapshot
from tests.snapshots import write_tables


def test_each_attempt_has_its_own_name_in_ray_train(tmp_path: Path) -> None:
    first, second = (attempt_config(open_store(str(tmp_path)), max_failures=2) for _ in range(2))
    assert first.name != second.name  # Ray Train resumes silently what lies under a name
    assert first.storage_path == second.storage_path == str(tmp_path / "ray")


class Ready(Exception):  # noqa: N818
    """The run has passed all checks before its work."""


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        (None, r"began with an earlier version of lookalike, whose epochs have another order.*another --run"),
        ("another", "another run's result, with another order"),
    ],
)
def test_a_run_with_another_order_of_samples_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str | None, message: str
) -> None:
    def stop(*_: object) -> None:
        raise Ready

    monkeypatch.setattr(run, "initial_bundle", stop)
    store = open_store(str(tmp_path / "run"))
    config = TrainConfig(dataset=write_snapshot(tmp_path / "dataset", [None]), run=store.uri, tracking="none:")
    for _ in range(2):  # a new run, and one that continues
        with pytest.raises(Ready):
            run.train(config)
    record = read_claim(store)
    assert record is not None
    assert record["identity"].pop("order") == ORDER
    if recorded is not None:
        record["identity"]["order"] = recorded
    store.write(RECORD, json.dumps(record | {"fingerprint": fingerprint(record["identity"])}).encode())
    with pytest.raises(ConflictError, match=message):
        run.train(config)


def test_references_of_rows_spread_over_a_large_split_are_counted(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = open_store(write_snapshot(tmp_path, [None] * 151) + "/v0001")
    rows = read_table(version).to_pylist()
    for row in rows[1:]:
        row["reference_offsets"] *= 3
    manifest = json.loads(version.read("manifest.json"))
    written = write_tables(version, pa.Table.from_pylist(rows, SCHEMA))
    version.write("manifest.json", json.dumps(manifest | written).encode())
    source = TripletSource(version.uri, "train", str(bundle_dir))
    monkeypatch.setattr(run, "_CHECKED", 16)
    with pytest.raises(InputError, match="up to 3 references, the preset mini takes 2"):
        run.references_fit(source)
