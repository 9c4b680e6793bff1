"""Remove what this machine, and each node of the cluster that the job joins, has cached of a prefix."""

import os
from collections.abc import Sequence
from typing import Any

from lookalike.bundles import digests
from lookalike.scratch import sweep
from lookalike.storage import open_store
from lookalike.storage.local import LocalStore
from pipelines.entry import ray_session


def clean(uris: Sequence[str]) -> list[str]:
    """Forget hashes of files below ``uris``, and remove temporary folders of ended processes, on this machine.

    Copies of bundles and photos lie in temporary folders, which end with their process. Returns the cache files that
    name such a file all the same.
    """
    sweep()
    roots = [store.root for store in map(open_store, uris) if isinstance(store, LocalStore)]
    for root in roots:
        digests.forget_below(root)
    return [f"{os.uname().nodename}: {file}" for root in roots for file in digests.cached_below(root)]


def clean_nodes(uris: Sequence[str]) -> tuple[int, list[str]]:
    """Clean this machine, and every node of the cluster in RAY_ADDRESS; returns the nodes and what is left on them."""
    remaining = clean(uris)
    if not os.environ.get("RAY_ADDRESS", "").strip():
        return 1, remaining
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with ray_session():
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        task: Any = ray.remote(num_cpus=0)(clean)
        waiting = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(uris)
            for node in nodes
        ]
        for answer in ray.get(waiting):
            remaining += answer
    return len(nodes), remaining
