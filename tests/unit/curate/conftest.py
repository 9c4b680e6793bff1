"""Fixtures that run the stages of curation as plain functions, without Ray."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.storage import open_store
from pipelines.curate.changed import with_recorded_changes
from pipelines.curate.cluster_subjects import IndexedShard, cluster_stages, groups_of
from pipelines.curate.config import CurateConfig
from pipelines.curate.duplicates import find_duplicates
from pipelines.curate.index import IndexWork, ShardIndexer
from pipelines.curate.inputs import Inputs
from pipelines.curate.plan import plan_partition
from pipelines.curate.raw import list_raw
from pipelines.curate.score import ShardScorer, scored
from pipelines.curate.screen import screen_shard
from pipelines.curate.subject_links import find_links, join_links, link_units
from pipelines.curate.work import StageWork
from pipelines.curate.work import indexed as table_infos


class GridEmbedder:
    """The colours of the central 3 × 3 cells less their mean: fast, and good enough for flat test photos."""

    revision, dim = "grid-1", 27

    def __init__(self, device: str = "cpu") -> None:
        self.calls = 0

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self.calls += len(images)
        vectors = []
        for image in images:
            side = min(image.shape[:2]) // 5
            cells = image[side : 4 * side, side : 4 * side].reshape(3, side, 3, side, 3).mean((1, 3)).reshape(-1)
            vectors.append((cells - 128) / max(1e-6, np.linalg.norm(cells - 128)))
        return np.array(vectors, np.float32)


@pytest.fixture
def grid_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curation embeds by :class:`GridEmbedder`."""
    monkeypatch.setattr("lookalike.annotators.embedder.load_embedder", lambda name, device="cpu": GridEmbedder(device))
    monkeypatch.setattr("lookalike.annotators.embedder.revision_of", lambda name: GridEmbedder.revision)


@pytest.fixture
def planned(grid_embedder: None, tmp_path: Path) -> Callable[..., StageWork]:
    """``planned(raw, **settings)`` runs the stages up to the plan and returns their work."""

    def make(raw: Path, **settings: object) -> StageWork:
        config = CurateConfig(raw=str(raw), dataset=str(tmp_path / "dataset"), **settings)  # type: ignore[arg-type]
        raw_store, dataset = open_store(config.raw), open_store(config.dataset)
        inputs = Inputs.of(config, with_recorded_changes(list_raw(config.raw, dataset).shards, dataset))
        units = tuple(inputs.units)
        indexer = ShardIndexer(IndexWork(config, inputs, raw_store, dataset, units))
        indexed = [indexer(unit) for unit in units]
        assert [str(columns["error"][0]) for columns in indexed] == [""] * len(units)
        if config.labels.found is not None:
            tables, workspace = table_infos(dataset), inputs.workspace
            shards = [IndexedShard(i, tables[workspace.rows(i)], tables[workspace.vectors(i)]) for i in units]
            for stage in cluster_stages(dataset, workspace, config.labels.found, config.seed, groups_of(shards)):
                for unit in range(stage.units) if isinstance(stage.units, int) else stage.units:
                    stage.task(stage.shared, unit)
        work = StageWork.of(config, inputs)
        assert work.images == sum(int(columns["images"][0]) for columns in indexed)
        for unit in units:
            screen_shard(work, unit)
        for partition in range(work.content_partitions):
            find_duplicates(work, partition)
        if sum(int(find_links(work, unit)["links"][0]) for unit in range(link_units(work))):
            join_links(work, 0)
            work = replace(work, linked=True)
        if inputs.models:
            scorer = ShardScorer(work)
            for unit in units:
                scorer(unit)
            work = replace(work, scores=scored(work))
        for partition in range(work.partitions):
            plan_partition(work, partition)
        return work

    return make
