"""Fixtures that run the stages of curation as plain functions, without Ray."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.storage import open_store
from pipelines.actors import ActorConfig, Units, run_units
from pipelines.curate.changed import with_recorded_changes
from pipelines.curate.cluster_subjects import cluster_stages
from pipelines.curate.config import CurateConfig
from pipelines.curate.index import IndexWork, RawShard, ShardIndexer
from pipelines.curate.inputs import Inputs
from pipelines.curate.raw import list_raw
from pipelines.curate.row_stages import run_row_stages
from pipelines.curate.work import StageWork


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


def in_process(task: Callable[..., Any], shared: Any, units: Units, *, noun: str = "") -> Iterator[pa.Table]:
    """``run_tasks`` without Ray; what units get and return is pickled, as it is between processes."""
    shared = pickle.loads(pickle.dumps(shared))
    return run_units(lambda shared: partial(task, shared), shared, units, ActorConfig(count=0), noun=noun)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of the row stages and of removals are done in this process."""
    for module in ("row_stages", "removals"):
        monkeypatch.setattr(f"pipelines.curate.{module}.run_tasks", in_process)
    monkeypatch.setattr("pipelines.curate.row_stages.run_units", _in_this_process)


def _in_this_process(actor: Any, shared: Any, units: Units, _: ActorConfig, *, noun: str = "") -> Iterator[pa.Table]:
    return run_units(actor, shared, units, ActorConfig(count=0), noun=noun)


@pytest.fixture
def planned(grid_embedder: None, no_ray: None, tmp_path: Path) -> Callable[..., StageWork]:
    """``planned(raw, **settings)`` runs the stages up to the plan and returns their work."""

    def make(raw: Path, **settings: object) -> StageWork:
        config = CurateConfig(raw=str(raw), dataset=str(tmp_path / "dataset"), **settings)  # type: ignore[arg-type]
        raw_store, dataset = open_store(config.raw), open_store(config.dataset)
        inputs = Inputs.of(config, with_recorded_changes(list_raw(config.raw, dataset).shards, dataset))
        shards = [RawShard(number, info) for number, info in enumerate(inputs.shards)]
        indexer = ShardIndexer(IndexWork(config, inputs.for_tasks(), raw_store, dataset))
        indexed = [indexer(shard) for shard in shards]
        assert [str(columns["error"][0]) for columns in indexed] == [""] * len(shards)
        if config.labels.found is not None:
            groups = list(StageWork.of(config, inputs, clustered=False).groups())
            for stage in cluster_stages(dataset, inputs.workspace, config.labels.found, config.seed, groups):
                for unit in range(stage.units) if isinstance(stage.units, int) else stage.units:
                    stage.task(stage.shared, unit)
        work = run_row_stages(StageWork.of(config, inputs))
        assert work.images == sum(int(columns["images"][0]) for columns in indexed)
        return work

    return make
