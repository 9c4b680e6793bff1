"""Run the stages between the index and the layout: from the tables of raw shards to a plan, by shuffles.

Each level of a shuffle is complete before the next one reads it. A unit that is done is not done again.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.data.passed_over import PassedOver
from lookalike.data.shuffle import Shuffle
from lookalike.documents import parse_object
from pipelines.actors import Columns, run_tasks, run_units
from pipelines.curate.duplicates import find_repeated
from pipelines.curate.gather import gather, sampled, take_sample
from pipelines.curate.plan import plan_partition
from pipelines.curate.score import ShardScorer, gather_scores
from pipelines.curate.subject_links import answer_requests, compare_pairs, find_candidates, join_links, joins
from pipelines.curate.subject_rows import read_subjects
from pipelines.curate.work import Sample, StageWork
from pipelines.curate.workspace import ShuffleName

log = logging.getLogger(__name__)


def run_row_stages(stage: StageWork) -> StageWork:
    """Do all units, and return the work with what they have counted, which the later stages need."""
    stage = with_sample(stage)
    stage = gathered(stage, rows_of(run_tasks(gather, stage.for_tasks(), list(stage.groups()), noun="groups gathered")))
    copies, models = stage.inputs.links_copies, bool(stage.inputs.models)
    _arrange(stage, {"subjects": True, "contents": True, "bands": copies})
    units = [("contents", i) for i in range(stage.content_partitions)]
    units += [("bands", i) for i in range(stage.band_partitions * copies)]
    compared = rows_of(run_tasks(_compare, stage.for_tasks(), units, noun="ranges compared across subjects"))
    stage = replace(stage, capped=sum(row["capped"] for row in compared))
    if stage.capped:
        log.warning("%d entries under keys of near copies have more candidates than are compared", stage.capped)
    _arrange(stage, {"repeated": True, "repeated_of_shards": models, "requests": copies})
    if models:
        _score(stage)
    run_all(run_tasks(_plan, stage.for_tasks(), stage.partitions, noun="ranges of subjects planned"))
    tables, links = stage.content_partitions, sum(row["links"] for row in compared)
    if copies:
        _arrange(stage, {"ends": True})
        ranges = stage.shuffle("ends").partitions
        near = rows_of(run_tasks(compare_pairs, stage.for_tasks(), ranges, noun="ranges of pairs compared"))
        tables, links = tables + ranges, links + sum(row["links"] for row in near)
    if links:
        for units_of_level in joins(tables):
            run_all(run_tasks(join_links, stage.for_tasks(), units_of_level, noun="sets of linked subjects"))
    return replace(stage, linked=bool(links))


def with_sample(stage: StageWork) -> StageWork:
    """Return the work with what a sample of its raw shards says about all of them."""
    shards = sampled(stage)
    (row,) = rows_of(run_tasks(take_sample, stage.for_tasks(), [shards], noun="samples"))
    size = sum(shard.rows.size for shard in stage.shards)
    images = -(-row["images"] * size // row["bytes"]) if row["bytes"] else 0
    mean, limits = np.frombuffer(row["mean"], "<f4"), np.frombuffer(row["limits"], "<i8")
    return replace(stage, sample=Sample(images, mean, limits))


def gathered(stage: StageWork, rows: Iterable[dict[str, Any]]) -> StageWork:
    """Return the work with the counts of all groups, which are the results of their units."""
    images, members = 0, PassedOver()
    for row in sorted(rows, key=lambda row: row["unit"]):
        images += row["images"]
        members.merge(PassedOver.from_json(parse_object(row["members"].encode(), "the counts of a group")))
    return replace(stage, images=images, members=members)


def rows_of(tables: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """Return the rows of all units, when the last is done."""
    return [row for table in tables for row in table.to_pylist()]


def run_all(tables: Iterable[pa.Table]) -> None:
    """Wait until all units are done."""
    for _ in tables:
        pass


def _compare(work: StageWork, unit: tuple[str, int]) -> Columns:
    """Do a range of contents or of keys of near copies; neither needs the other."""
    kind, partition = unit
    return find_repeated(work, partition) if kind == "contents" else find_candidates(work, partition)


def _plan(work: StageWork, partition: int) -> Columns:
    """Write the plan of a range of subjects and the requested vectors of its images, unless that was done before."""
    answered = not work.inputs.links_copies or work.shuffle("ends").is_written(1, partition)
    planned = work.dataset.exists(work.workspace.summary(partition))
    if not (answered and planned):
        subjects = read_subjects(work, partition)
        if not answered:
            answer_requests(work, partition, subjects)
        if not planned:
            plan_partition(work, partition, subjects)
    return {"partition": np.array([partition])}


def _score(stage: StageWork) -> None:
    """Ask the models, and bring their answers to the subjects."""
    noun = "raw shards scored"
    answered = rows_of(run_units(ShardScorer, stage.for_tasks(), stage.shards, stage.config.actors, noun=noun))
    log.info("models were shown %d new images", sum(row["shown"] for row in answered))
    run_all(run_tasks(gather_scores, stage.for_tasks(), list(stage.groups()), noun="groups of scores gathered"))
    arrange([stage.score_shuffle(revision) for revision in sorted(set(stage.inputs.models.values()))])


def _arrange(stage: StageWork, names: dict[ShuffleName, bool]) -> None:
    """Do :func:`arrange` of the shuffles that are written."""
    arrange([stage.shuffle(name) for name, is_written in names.items() if is_written])


@dataclass(frozen=True)
class _Step:
    """A unit of a shuffle after its first level was written."""

    shuffle: int
    level: int
    number: int
    is_index: bool


def arrange(shuffles: list[Shuffle]) -> None:
    """Do all units of these shuffles after those that write their first level."""
    for level in range(1, max(len(shuffle.bits) for shuffle in shuffles) + 1):
        here = [(i, shuffle) for i, shuffle in enumerate(shuffles) if level <= len(shuffle.bits)]
        counts: list[tuple[bool, Callable[[Shuffle], int]]] = [(True, lambda shuffle: shuffle.indices(level))]  # noqa: B023
        if level > 1:
            counts.insert(0, (False, lambda shuffle: shuffle.units(level)))  # noqa: B023
        for is_index, count in counts:
            steps = [_Step(i, level, n, is_index) for i, shuffle in here for n in range(count(shuffle))]
            run_all(run_tasks(_do, shuffles, steps, noun="indices" if is_index else "ranges divided"))


def _do(shuffles: list[Shuffle], step: _Step) -> Columns:
    shuffle = shuffles[step.shuffle]
    if step.is_index:
        shuffle.write_index(step.level, step.number)
    else:
        shuffle.merge(step.level, step.number)
    return {"number": np.array([step.number])}
