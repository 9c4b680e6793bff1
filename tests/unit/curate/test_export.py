"""An export has the triplets of the table: plain WebDataset shards that the webdataset library reads."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset

import jobs.curate
from lookalike.data.triplet_files import read_files
from lookalike.data.triplets import read_table
from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.storage import Store, open_store, read_manifest
from pipelines.curate import export as exporting
from pipelines.curate.config import PlanConfig
from pipelines.curate.export import ExportConfig, export, export_shard, export_work
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.work import StageWork
from tests.drawn import world, write_raw
from tests.published import materialise, tables

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))


@pytest.fixture
def version(planned: Callable[..., StageWork], tmp_path: Path) -> Store:
    """A snapshot of six things, of at most 10 triplets each."""
    plan = PlanConfig(max_triplets_per_subject=10)
    return materialise(planned(write_raw(tmp_path / "raw", world(6, 4)), filters=LOOSE, plan=plan)).version


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "run_tasks", lambda task, work, units, noun: tables(task, work, units))


def config_of(version: Store, output: Path, **settings: Any) -> ExportConfig:
    return ExportConfig(version.parent.uri, str(output), **settings)


def composed(paths: list[Path]) -> list[dict[str, Any]]:
    """The triplets of exported shards, by the function that the job's help shows."""
    text = jobs.curate.__doc__ or ""
    code = text[text.index("  def triplets(") : text.index("  webdataset.WebDataset(")]
    names: dict[str, Any] = {"json": json}
    exec("\n".join(line[2:] for line in code.splitlines()), names)
    urls = [str(path) for path in paths]
    return list(webdataset.WebDataset(urls, shardshuffle=False).compose(names["triplets"]))


def shards(output: Path) -> list[Path]:
    return sorted(output.glob("*.tar"))


def table_of(version: Store) -> Iterator[dict[str, Any]]:
    """The triplets of the tables, with the bytes of their images."""
    rows = read_table(version).to_pylist()
    for row, files in zip(rows, read_files(version, rows), strict=True):
        assert not isinstance(files, InputError)
        yield {
            "id": row["triplet_id"],
            "class": row["class_name"],
            "prompt": row["prompt"],
            "target": files.target,
            "references": list(files.references),
            "similarities": row["reference_similarities"],
        }


def test_webdataset_reads_exactly_the_triplets_of_the_tables(version: Store, tmp_path: Path, without_ray: None) -> None:
    result = export(config_of(version, tmp_path / "out"))
    assert composed(shards(tmp_path / "out")) == list(table_of(version))
    assert [path.name for path in shards(tmp_path / "out")] == ["train-000000.tar", "validation-000000.tar"]
    assert result == {
        "shards": {"train": 1, "validation": 1},
        "subjects": 6,
        "triplets": len(read_table(version)),
        "images": 24,
    }
    urls = [str(path) for path in shards(tmp_path / "out")]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert sum(name.endswith(".jpg") for sample in samples for name in sample) == 24, "each image once"
    labels = json.loads(samples[0]["json"])
    assert {image["licence"] for image in labels["images"]} == {"CC0-1.0"}
    assert {image["source"] for image in labels["images"]} == {"drawn"}
    assert labels["class"] == "thing"
    assert labels["subject"].startswith("thing0")


@pytest.mark.parametrize("rows", [1, 7, 10, 11, 24, 1000])
def test_shards_of_any_size_hold_each_subject_once(version: Store, tmp_path: Path, rows: int) -> None:
    config = config_of(version, tmp_path / "out")
    whole = export_work(config, read_manifest(version.parent, 1), 1)
    assert whole.rows_per_shard > 1000
    work = replace(whole, rows_per_shard=rows)
    for unit in reversed(range(sum(work.shards(split) for split in work.parts))):
        export_shard(work, unit)
    assert composed(shards(tmp_path / "out")) == list(table_of(version))
    if rows >= 10:
        names = [path.stem for path in shards(tmp_path / "out") if path.stem.startswith("train")]
        assert names == [f"train-{number:06d}" for number in range(len(names))]


def test_export_resumes_and_repeats_no_shard(
    version: Store, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(version, tmp_path / "out")
    result = export(config)
    before = {path.name: path.read_bytes() for path in shards(tmp_path / "out")}
    (tmp_path / "out" / "export.json").unlink()
    shards(tmp_path / "out")[1].unlink()
    written = []
    write_tar = exporting.write_tar
    monkeypatch.setattr(exporting, "write_tar", lambda *args: written.append(1) or write_tar(*args))
    assert export(config) == result
    assert written == [1]
    assert {path.name: path.read_bytes() for path in shards(tmp_path / "out")} == before
    assert {name: value for name, value in export(config).items() if name in result} == result


def test_location_of_another_export_is_refused(version: Store, tmp_path: Path, without_ray: None) -> None:
    export(config_of(version, tmp_path / "out"))
    with pytest.raises(ConflictError, match="split"):
        export(config_of(version, tmp_path / "out", split="train"))
    assert export(config_of(version, tmp_path / "train", split="train"))["shards"] == {"train": 1}
    with pytest.raises(ConfigError, match="share a prefix"):
        export(config_of(version, Path(version.parent.uri.removeprefix("file://")) / "exported"))


def test_changed_image_is_not_exported(version: Store, tmp_path: Path, without_ray: None) -> None:
    dataset = open_store(version.parent.uri)
    (info,) = dataset.list("shards/")
    dataset.write(info.key, dataset.read(info.key).replace(b"\xff\xd9", b"\xff\xd8"))
    with pytest.raises(InputError, match="has changed since it was curated"):
        export(config_of(version, tmp_path / "out"))
    assert not shards(tmp_path / "out")
