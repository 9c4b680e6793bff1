"""Remove what this machine, and each node of the cluster that the job joins, has cached of a prefix."""

import os
from pathlib import Path
from typing import Any

from lookalike.bundles import digests
from lookalike.scratch import sweep
from lookalike.storage import open_store
from lookalike.storage.local import LocalStore
from pipelines.entry import ray_session


def clean(uri: str) -> int:
    """Forget hashes of files below ``uri``, and remove temporary folders of ended processes, on this machine.

    Copies of bundles and photos lie in temporary folders, which end with their process. Returns the number of removed
    cache files.
    """
    sweep()
    store = open_store(uri)
    return digests.forget_below(store.root) if isinstance(store, LocalStore) else 0


def left(uri: str) -> list[str]:
    """Cache files of this machine that name a file below ``uri``."""
    store = open_store(uri)
    return list(map(str, digests.cached_below(store.root))) if isinstance(store, LocalStore) else []


def clean_nodes(uri: str) -> tuple[int, list[str]]:
    """Clean this machine, and every node of the cluster in RAY_ADDRESS; returns the nodes and what is left on them."""
    clean(uri)
    remaining = left(uri)
    if not os.environ.get("RAY_ADDRESS", "").strip():
        return 1, remaining
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with ray_session():
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        task: Any = ray.remote(num_cpus=0)(_clean_here)
        waiting = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(uri)
            for node in nodes
        ]
        for answer in ray.get(waiting):
            remaining += answer
    return len(nodes), remaining


def _clean_here(uri: str) -> list[str]:
    clean(uri)
    host = os.uname().nodename
    return [f"{host}: {Path(file)}" for file in left(uri)]
