"""Tables of synthetic photos as the index writes them, and the stages that find their subjects, as plain functions."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.storage import Store
from pipelines.curate.cluster_subjects import cluster_stages
from pipelines.curate.config import CurateConfig, FoundConfig
from pipelines.curate.inputs import Inputs
from pipelines.curate.rows import IMAGE_SCHEMA, sha256, subject_hash
from pipelines.curate.tables import vectors_array, with_notes, write_table
from pipelines.curate.work import Group, IndexedShard


def directions(subjects: int, views: int, noise: float) -> np.ndarray:
    """Unit-norm vectors [subjects * views, 64]; those of a subject lie behind one another."""
    random = np.random.default_rng(0)
    centres = np.repeat(random.normal(size=(subjects, 64)), views, axis=0)
    vectors = centres + noise * random.normal(size=centres.shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def photos(shards: int, per_shard: int, views: int = 5, noise: float = 0.35) -> np.ndarray:
    """Vectors of S raw shards with N photos, whose subjects are spread over the shards: [S, N, D]."""
    vectors = directions(shards * per_shard // views, views, noise)
    return vectors.reshape(-1, views, 64).swapaxes(0, 1).reshape(shards, per_shard, 64)


class Counted:
    """A store that counts its requests by the kind of request and the first part of the key."""

    def __init__(self, store: Store) -> None:
        self._store, self.requests = store, Counter[tuple[str, str]]()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if name not in ("read", "read_range", "write", "exists"):
            return attribute

        def counted(key: str, *args: Any) -> Any:
            self.requests[name, key.partition("/")[0]] += 1
            return attribute(key, *args)

        return counted

    def reads(self, first: str) -> int:
        """Number of objects and ranges that were read below ``first``."""
        return self.requests["read", first] + self.requests["read_range", first]


def write_index(
    store: Store, vectors_SND: np.ndarray, labels: dict[tuple[int, int], str] | None = None
) -> list[IndexedShard]:
    """Tables of S raw shards of N photos; ``labels`` has the subjects of some, by (shard, photo)."""
    infos = []
    for shard, vectors in enumerate(vectors_SND):
        names = [(labels or {}).get((shard, i), "") for i in range(len(vectors))]
        texts = {field.name: "" for field in IMAGE_SCHEMA if field.type == pa.string()}
        rows = [
            texts | {"key": f"{shard}-{i}", "offset": i * 512, "subject": name, "subject_hash": subject_hash(name)}
            | {"sha256": sha256(vectors[i].tobytes() + bytes([shard % 250, i % 250]))}
            for i, name in enumerate(names)
        ]  # fmt: skip
        order = sorted(range(len(rows)), key=lambda i: (rows[i]["subject_hash"], i))
        table = pa.Table.from_pylist([rows[i] for i in order], IMAGE_SCHEMA)
        write_table(store, f"tables/{shard:04d}.rows", with_notes(table, {"members": shard}))
        embedded = table.select(["subject_hash", "sha256"]).append_column("vector", vectors_array(vectors[order]))
        write_table(store, f"tables/{shard:04d}.vectors", embedded)
    tables = {info.key: info for info in store.list("tables/")}
    for shard in range(len(vectors_SND)):
        key = f"tables/{shard:04d}"
        infos.append(IndexedShard(shard, key, tables[f"{key}.rows"], tables[f"{key}.vectors"]))
    return infos


def groups_of(shards: list[IndexedShard], group_bytes: int) -> list[Group]:
    """Raw shards in groups of at most so many bytes of tables, or of one."""
    groups: list[list[IndexedShard]] = []
    held = 0
    for shard in shards:
        size = shard.rows.size + shard.vectors.size
        if not groups or held + size > group_bytes:
            groups.append([])
            held = 0
        groups[-1].append(shard)
        held += size
    return [Group(number, tuple(members)) for number, members in enumerate(groups)]


def find(
    store: Any, shards: list[IndexedShard], settings: FoundConfig, seed: int = 0, group_bytes: int = 64 << 20
) -> list[dict[str, Any]]:
    """Run all stages, the units of each in a random order, and return their results."""
    workspace = Inputs.of(CurateConfig(raw="raw", dataset="dataset"), []).workspace
    results = []
    for stage in cluster_stages(store, workspace, settings, 0, groups_of(shards, group_bytes)):
        units = list(range(stage.units)) if isinstance(stage.units, int) else list(stage.units)
        random.Random(seed).shuffle(units)
        for unit in units:
            columns = stage.task(stage.shared, unit)
            results.append({name: values[0] for name, values in columns.items()})
    return results
