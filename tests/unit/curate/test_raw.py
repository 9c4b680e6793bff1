"""Lists of raw shards, and compressed ones."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookalike.data.triplets import read_triplets
from lookalike.errors import ConfigError, InputError
from lookalike.storage import open_store
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.index import IndexWork, RawShard, ShardIndexer
from pipelines.curate.raw import list_raw, raw_store
from pipelines.curate.tables import read_table
from pipelines.curate.work import StageWork
from tests.drawn import world, write_raw
from tests.published import materialise


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four shards of four photos, two of them in another folder."""
    write_raw(tmp_path / "raw" / "a", world(2, 4), per_shard=4)
    write_raw(tmp_path / "raw" / "b", world(4, 4)[8:], per_shard=4)
    return tmp_path / "raw"


def keys(raw: str | list[str], tmp_path: Path) -> list[str]:
    return [info.key for info in list_raw(raw, open_store(str(tmp_path / "dataset"))).shards]


def test_raw_accepts_prefixes_braces_and_lists(raw: Path, tmp_path: Path) -> None:
    everything = [f"{folder}/shard-00000{i}.tar" for folder in "ab" for i in range(2)]
    assert keys(str(raw), tmp_path) == everything
    assert keys(f"{raw}/{{a,b}}/shard-{{000000..000001}}.tar", tmp_path) == everything
    assert keys([f"{raw}/b", f"file://{raw}/a/shard-000001.tar"], tmp_path) == everything[1:]
    assert keys(f"{raw}/a/shard-00000{{0..1}}.tar", tmp_path) == ["shard-000000.tar", "shard-000001.tar"]
    assert raw_store([f"{raw}/b", f"{raw}/a/shard-000001.tar"]).uri == f"file://{raw}"
    assert raw_store(["s3://bucket/x/a.tar", "s3://bucket/y"]).uri == "s3://bucket"


def test_missing_raw_shards_are_errors_that_name_them(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the shard does not exist .*shard-000002\.tar"):
        keys(f"{raw}/a/shard-{{000000..000002}}.tar", tmp_path)
    with pytest.raises(InputError, match=r"missing or empty .*/c"):
        keys([f"{raw}/a", f"{raw}/c"], tmp_path)
    with pytest.raises(ConfigError, match="no prefix in common"):
        raw_store(["s3://one/a", "s3://two/a"])
    with pytest.raises(ConfigError, match="no raw shards are named"):
        raw_store([])


def test_a_compressed_shard_gives_the_triplets_of_a_plain_one(
    planned: Callable[..., StageWork], raw: Path, tmp_path: Path
) -> None:
    def stored(work: StageWork) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
        rows = read_triplets(materialise(work).version)
        return {info.key: work.dataset.read(info.key) for info in work.dataset.list("shards/")}, rows

    filters = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
    plain = stored(planned(raw, filters=filters))
    assert plain[0]
    for path in list(raw.rglob("*.tar")):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    work = planned(raw, filters=filters)
    assert next(info.key for info in work.inputs.shards) == "a/shard-000000.tar.gz"
    assert stored(work) == plain


def test_a_truncated_compressed_shard_keeps_complete_samples(
    planned: Callable[..., StageWork], raw: Path, tmp_path: Path
) -> None:
    shard = raw / "a" / "shard-000000.tar"
    whole = gzip.compress(shard.read_bytes())
    shard.with_suffix(".tar.gz").write_bytes(whole[: len(whole) // 2])
    shard.unlink()
    work = planned(raw)
    rows = read_table(work.dataset, work.inputs.workspace.rows(work.inputs.ids[0])).to_pylist()
    assert any(row["cut"] for row in rows)
    assert any(not row["error"] for row in rows)
    indexer = ShardIndexer(IndexWork(work.config, work.inputs, work.raw, work.dataset))
    assert indexer(RawShard(0, work.inputs.shards[0]))["images"] == [len(rows)]
