"""Curate on a Ray cluster of four nodes on one machine, of which one dies in the middle: the bytes are the same.

    python -m pytest tests/bench -k cluster -s

Writes results/curation-cluster.json. Each node is a raylet of its own with one CPU. The node that dies (kill -9 of its
raylet and all its workers) is not the head, and it dies once a third of the objects of an undisturbed run are there.
"""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from lookalike.storage import open_store
from pipelines.curate import CurateConfig, curate
from pipelines.curate.config import PlanConfig, ShardsConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from tests.bench.measured import keep
from tests.drawn import world, write_raw

NODES, SUBJECTS, PHOTOS, PER_SHARD = 4, 60, 5, 10

pytestmark = pytest.mark.timeout(3600)


def test_four_nodes_and_a_lost_one_give_the_same_bytes(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    raw = write_raw(tmp_path / "raw", world(SUBJECTS, PHOTOS), per_shard=PER_SHARD)
    alone = _curate(raw, tmp_path / "alone")
    objects = sum(1 for _ in open_store(str(tmp_path / "alone")).list())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=1) for _ in range(NODES - 1)]
    cluster.wait_for_nodes()
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        whole = _curate(raw, tmp_path / "whole")
        lost: list[float] = []
        killer = threading.Thread(
            target=lambda: lost.append(_lose(cluster, others[0], tmp_path / "lost", objects // 3))
        )
        killer.start()
        disturbed = _curate(raw, tmp_path / "lost")
        killer.join()
        assert len([node for node in ray.nodes() if node["Alive"]]) == NODES - 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert whole == alone
    assert disturbed == alone
    record = {
        "command": "python -m pytest tests/bench -k cluster -s",
        "nodes": NODES,
        "images": SUBJECTS * PHOTOS,
        "raw_shards": SUBJECTS * PHOTOS // PER_SHARD,
        "objects_of_the_snapshot": len(alone),
        "lost_a_node_after_objects": objects // 3,
        "byte_identical": True,
    }
    keep("curation-cluster", record)


def _curate(raw: Path, dataset: Path) -> dict[str, str]:
    """The hash of each object of the snapshot and of each pack, by key."""
    curate(
        CurateConfig(
            raw=str(raw),
            dataset=str(dataset),
            embedder="none",
            filters=FiltersConfig(no_pair=NoPair(min_similarity=0.0), skip=["near_duplicate", "off_subject"]),
            plan=PlanConfig(rows_per_partition=20),
            shards=ShardsConfig(image_size=None, shard_mib=1),
        )
    )
    store = open_store(str(dataset))
    kept = [info.key for info in store.list() if not info.key.startswith("work/")]
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in kept}


def _lose(cluster: object, node: object, dataset: Path, objects: int) -> float:
    """Kill a node when so many objects are there; return when."""
    while sum(path.is_file() for path in dataset.rglob("*")) < objects:
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
    return time.monotonic()
