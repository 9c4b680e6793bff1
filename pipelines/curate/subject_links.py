"""Links: find subjects that share an image, or a near copy of one, so that they are in the same split.

Equal files are found by :mod:`pipelines.curate.duplicates`. Candidates for near copies come from
:mod:`pipelines.curate.near`; their vectors, which lie with their subjects, are brought together by two shuffles and
compared as ``filters.near_duplicate`` does.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lookalike.config import canonical_json
from lookalike.storage import read_object
from pipelines.actors import Columns
from pipelines.curate.graph import components
from pipelines.curate.near import candidates
from pipelines.curate.rows import COMPONENT_SCHEMA, LINK_SCHEMA, end_schema, spread, unit_hash
from pipelines.curate.subject_rows import SubjectRows, positions_of
from pipelines.curate.tables import vectors_array, vectors_of, write_table
from pipelines.curate.work import StageWork

_FAN_IN = 128  # tables of links that are joined at once
_BLOCK = 1 << 16  # pairs whose vectors are compared at once


def find_candidates(work: StageWork, partition: int) -> Columns:
    """Request the vectors of images that may be near copies, of a range of keys, unless that was done before; return
    how many images have more candidates than are compared."""
    store, key = work.dataset, work.workspace.candidates(partition)
    if not store.exists(key):
        pairs, capped = candidates(work.shuffle("bands").read(partition), work.sample.limits)
        numbers = {side: _numbers(pairs, side) for side in "ab"}
        sides = [
            pa.table(
                {
                    "subject_hash": pairs[f"{own}_subject"],
                    "number": numbers[own],
                    "other": numbers[other],
                    "distance": pairs["distance"],
                }
            )
            for own, other in ("ab", "ba")
        ]
        work.shuffle("requests").write(partition, pa.concat_tables(sides))
        store.write(key, canonical_json({"capped": capped}).encode())
    return {"links": np.array([0]), "capped": np.array([read_object(store, key, "capped")["capped"]])}


def _numbers(pairs: pa.Table, side: str) -> np.ndarray:
    unit, row = (pairs[f"{side}_{name}"].to_numpy().astype(np.int64) for name in ("unit", "row"))
    return np.asarray(unit << 32 | row)


def answer_requests(work: StageWork, partition: int, subjects: SubjectRows) -> None:
    """Write the requested vectors of a range of subjects, by pair."""
    rows = work.shuffle("requests").read(partition)
    number, other = rows["number"].to_numpy(), rows["other"].to_numpy()
    order = np.lexsort((other, number))
    number, other = number[order], other[order]
    new = np.r_[True, (number[1:] != number[:-1]) | (other[1:] != other[:-1])][: len(number)]  # from several keys
    chosen, number, other = order[new], number[new], other[new]
    places = positions_of(number, subjects.numbers)
    names = subjects.rows["subject"].take(pa.array(places)).to_pylist()
    split = {name: unit_hash("split", work.config.seed, name) for name in set(names)}
    columns = {
        "pair": spread(np.minimum(number, other) * 31 ^ spread(np.maximum(number, other))),
        "number": number,
        "other": other,
        "distance": rows["distance"].to_numpy()[chosen],
        "subject_hash": subjects.rows["subject_hash"].to_numpy()[places],
        "split_hash": np.array([split[name] for name in names], np.float64),
        "vector": vectors_array(subjects.vectors[places]),
    }
    work.shuffle("ends").write(partition, pa.table(columns, end_schema(subjects.vectors.shape[1])))


def compare_pairs(work: StageWork, partition: int) -> Columns:
    """Write which subjects share a near copy, of a range of pairs, unless that was done before; return the number of
    links."""
    key = work.workspace.resembling(partition)
    if not work.dataset.exists(key):
        rows = work.shuffle("ends").read(partition)
        number, other = rows["number"].to_numpy(), rows["other"].to_numpy()
        order = np.lexsort((number, np.maximum(number, other), np.minimum(number, other)))
        a, b = order[::2], order[1::2]
        assert len(a) == len(b), "an image of a pair is missing"
        assert (number[a] == other[b]).all(), "an image of a pair is missing"
        similarity = np.empty(len(a), np.float32)
        for first in range(0, len(a), _BLOCK):
            block = slice(first, first + _BLOCK)
            sides = (vectors_of(rows["vector"].take(pa.array(side[block]))) for side in (a, b))
            similarity[block] = np.round(np.einsum("nd,nd->n", *sides), 3)
        distance = rows["distance"].to_numpy()[a]
        near = similarity >= work.config.filters.near_duplicate.required(distance)
        subjects, splits = rows["subject_hash"].to_numpy(), rows["split_hash"].to_numpy()
        a, b = a[near], b[near]
        links = pa.table([subjects[a], splits[a], subjects[b], splits[b]], LINK_SCHEMA)
        write_table(work.dataset, key, _forest(links))
    return {"links": np.array([work.read_links(key, LINK_SCHEMA).num_rows])}


@dataclass(frozen=True)
class Join:
    """Join the tables ``first`` to ``stop`` - 1 of the level before into table ``number`` of ``level``."""

    level: int
    number: int
    first: int
    stop: int
    is_last: bool


def joins(tables: int) -> list[list[Join]]:
    """Return the units of :func:`join_links` for so many tables of links, level by level."""
    levels: list[list[Join]] = []
    while not levels or tables > 1:
        counts = range(-(-tables // _FAN_IN))
        level = len(levels) + 1
        levels.append([Join(level, i, i * _FAN_IN, min(tables, (i + 1) * _FAN_IN), len(counts) == 1) for i in counts])
        tables = len(counts)
    return levels


def join_links(work: StageWork, unit: Join) -> Columns:
    """Join tables of links: write for each linked subject the one with the lowest hash that links lead to, and at last
    the split hash of that one, unless that was done before."""
    store, workspace = work.dataset, work.workspace
    key = workspace.components() if unit.is_last else workspace.joined(unit.level, unit.number)
    if not store.exists(key):
        keys = (_table(work, unit.level - 1, number) for number in range(unit.first, unit.stop))
        forest = _forest(pa.concat_tables([work.read_links(each, LINK_SCHEMA) for each in keys]))
        write_table(store, key, _components(forest) if unit.is_last else forest)
    return {"subjects": np.array([0])}


def _table(work: StageWork, level: int, number: int) -> str:
    """Return the key of a table of links; those of level 0 are of ranges of contents and then of ranges of pairs."""
    if level:
        return work.workspace.joined(level, number)
    near = number - work.content_partitions
    return work.workspace.sharing(number) if near < 0 else work.workspace.resembling(near)


def _forest(links: pa.Table) -> pa.Table:
    """Return one link from each linked subject to the one with the lowest hash that links lead to, sorted."""
    ends = [np.concatenate([links[a].to_numpy(), links[b].to_numpy()]) for a, b in _SIDES]
    subjects, first, positions = np.unique(ends[0], return_index=True, return_inverse=True)
    splits = ends[1][first]
    heads, tails = np.split(positions, 2)
    component = components(heads, tails, len(subjects))
    _, lowest = np.unique(component, return_index=True)  # subjects are sorted
    root = lowest[component]
    linked = root != np.arange(len(subjects))
    columns = [subjects[linked], splits[linked], subjects[root][linked], splits[root][linked]]
    return pa.table(columns, LINK_SCHEMA)


_SIDES = (("subject_hash", "other_hash"), ("split_hash", "other_split_hash"))


def _components(forest: pa.Table) -> pa.Table:
    """Return the split hash of each linked subject, sorted by its hash."""
    roots, first = np.unique(forest["other_hash"].to_numpy(), return_index=True)
    subjects = np.concatenate([forest["subject_hash"].to_numpy(), roots])
    splits = forest["other_split_hash"].to_numpy()
    splits = np.concatenate([splits, splits[first]])
    order = np.argsort(subjects)
    return pa.table([subjects[order], splits[order]], COMPONENT_SCHEMA)
