"""Plan: decide for a range of subjects, from rows and embeddings, which images are kept and form which triplets."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.config import canonical_json
from pipelines.actors import Columns
from pipelines.curate.captions import fit_captions
from pipelines.curate.filters import Filter, Photos, with_scores
from pipelines.curate.filters.large_subject import LargeSubject
from pipelines.curate.inputs import CAPTION
from pipelines.curate.pairs import reference_sets
from pipelines.curate.rows import PLAN_SCHEMA, SUBJECT_SCHEMA, unit_hash
from pipelines.curate.summary import EXAMPLES_PER_REASON, Summary
from pipelines.curate.tables import read_part, vectors_of, write_table
from pipelines.curate.work import StageWork

_REFERENCE_COLUMNS = ("sha256", "shard", "offset", "length")
_EXAMPLE_COLUMNS = ("key", "shard", "offset", "length", "sha256", "subject", "error", "note", "phash")


def plan_partition(work: StageWork, partition: int) -> Columns:
    """Write the plan of one range of subjects, unless that was done before."""
    if not work.dataset.exists(work.workspace.summary(partition)):
        _plan(work, partition)
    return {"partition": np.array([partition])}


def _plan(work: StageWork, partition: int) -> None:
    span = work.span(partition)
    rows, reasons = work.read_rows(span)
    summary = Summary(images=len(rows))
    _drop_one_by_one(work, rows, reasons, span)
    rows = fit_captions(_captioned(work, rows, span), work.config.captions)
    rows = rows.combine_chunks()  # so that a subject's rows are a slice
    vectors, contents = _vectors(work, span), rows["sha256"].to_pylist()
    places = rows.select(_REFERENCE_COLUMNS).to_pylist()
    steps = list(work.config.filters.steps("subject"))
    bounded = [name for name, step in steps if isinstance(step, LargeSubject)]
    sets: list[list[list[dict[str, Any]]]] = [[] for _ in range(len(rows))]
    subjects = []
    values_of: dict[str, list[np.ndarray]] = {}
    components = work.read_components() if work.linked else {}
    of_row: list[str] = rows["subject"].to_pylist()
    for subject, group in groupby(range(len(rows)), key=of_row.__getitem__):
        members = np.array(list(group))
        left = reasons[members] == ""
        kept = members[left]
        summary.subjects_in += bool(subject)
        if len(kept) == 0:
            continue
        own = Photos(rows.slice(members[0], len(members))).take(left)
        photos = Photos(own.rows, np.stack([vectors[contents[i]] for i in kept]))
        photos, kept = _drop_of_subject(steps, photos, kept, reasons)
        summary.bounded_subjects += bool(np.isin(reasons[members], bounded).any())
        if len(kept):
            images = [places[i] for i in kept]
            pairs, row = _pair(work, photos, images, components.get(subject, subject), summary, values_of)
            subjects.append(row)
            for i, chosen in zip(kept, pairs, strict=True):
                sets[i] = chosen
    for name, values in values_of.items():  # counting once costs less than once for each subject
        summary.count(name, np.concatenate(values))
    _count(summary, rows, reasons)
    planned = rows.append_column(
        "drop_reason", pa.array([reason or None for reason in reasons], pa.string())
    ).append_column("reference_sets", pa.array(sets, PLAN_SCHEMA.field("reference_sets").type))
    store = work.dataset
    write_table(store, work.workspace.plan(partition, "images"), planned.cast(PLAN_SCHEMA))
    write_table(store, work.workspace.plan(partition, "subjects"), pa.Table.from_pylist(subjects, SUBJECT_SCHEMA))
    store.write(work.workspace.summary(partition), canonical_json(vars(summary)).encode())


def _drop_one_by_one(work: StageWork, rows: pa.Table, reasons: np.ndarray, span: tuple[int, int]) -> None:
    """Add the reasons of duplicates and of filters that see a score to the ``reasons`` of the screen."""
    for name, _ in work.config.filters.steps("content"):
        repeated = work.read_duplicates(span, "subject_hash")
        places = zip(*(rows[name].to_pylist() for name in ("shard", "offset", "key")), strict=True)
        mask = np.array([place in repeated for place in places], bool)
        reasons[mask & (reasons == "")] = name
    for name, step in work.config.filters.scored():
        scores = {} if step.scorer is None else work.read_scores(work.inputs.models[name], span)
        left = np.flatnonzero(reasons == "")
        reasons[left[step.drop(with_scores(rows.take(pa.array(left)), scores))]] = name


def _captioned(work: StageWork, rows: pa.Table, span: tuple[int, int]) -> pa.Table:
    """Return the rows, with the captioner's answer as the caption of those without one."""
    if work.config.captioner is None:
        return rows
    answers = work.read_scores(work.inputs.models[CAPTION], span)
    captions = [
        row["caption"] or answers.get(row["sha256"], "") for row in rows.select(["caption", "sha256"]).to_pylist()
    ]
    return rows.set_column(rows.schema.get_field_index("caption"), "caption", pa.array(captions, pa.string()))


def _drop_of_subject(
    steps: Sequence[tuple[str, Filter]], photos: Photos, kept: np.ndarray, reasons: np.ndarray
) -> tuple[Photos, np.ndarray]:
    """Apply the filters that see all photos of a subject; return the photos that are kept, and their rows."""
    for name, step in steps:
        drop = step.drop(photos)
        if drop.any():
            reasons[kept[drop]] = name
            photos, kept = photos.take(~drop), kept[~drop]
        if len(kept) == 0:
            break
    return photos, kept


def _pair(
    work: StageWork,
    photos: Photos,
    images: list[dict[str, Any]],
    component: str,
    summary: Summary,
    values_of: dict[str, list[np.ndarray]],
) -> tuple[list[list[list[dict[str, Any]]]], dict[str, Any]]:
    """Return the reference sets of each photo of a subject, whose places are ``images``, and the subject's row."""
    config = work.config
    order = sorted(range(len(images)), key=lambda i: unit_hash("target", config.seed, images[i]["sha256"]))
    similarity = photos.similarity
    chosen = reference_sets(similarity, config.filters.no_pair.pairs(photos), order, config.plan)
    sets, used = [], []
    for target, groups in enumerate(chosen):
        sets.append([[images[i] | {"similarity": float(similarity[target, i])} for i in group] for group in groups])
        used += [similarity[target, i] for group in groups for i in group]
    triplets = sum(map(len, chosen))
    counted = {
        "similarity of photos of one subject": np.concatenate([row[i + 1 :] for i, row in enumerate(similarity)]),
        "similarity of references to their target": np.array(used),
        "images kept of a subject": np.array([len(images)]),
        "triplets of a subject": np.array([triplets]),
    }
    for name, values in counted.items():
        values_of.setdefault(name, []).append(values)
    summary.subjects += 1
    summary.triplets += triplets
    first = photos.rows.slice(0, 1).select(["subject_hash", "subject", "class_name"]).to_pylist()[0]
    summary.classes[first.pop("class_name")] += 1
    lengths = [image["length"] for image in images]
    size = sum(lengths[t] + sum(lengths[i] for i in group) for t, groups in enumerate(chosen) for group in groups)
    split_hash = unit_hash("split", config.seed, component)
    return sets, first | {"split_hash": split_hash, "triplets": triplets, "bytes": size}


def _count(summary: Summary, rows: pa.Table, reasons: np.ndarray) -> None:
    decoded = Photos(rows.filter(pa.array(np.array(rows["error"].to_pylist(), object) == "")))
    if len(decoded):
        summary.count("short side, px", np.minimum(decoded["width"], decoded["height"]))
        summary.count("sharpness", decoded["sharpness"])
        summary.count("brightness", decoded["luma_mean"])
    kept = rows.filter(pa.array(reasons == "", pa.bool_()))
    summary.kept = len(kept)
    summary.add_notes(rows["note"].to_pylist())
    summary.add_captions(dict(zip(kept["sha256"].to_pylist(), kept["caption"].to_pylist(), strict=True)))
    for reason in set(reasons) - {""}:
        dropped = np.flatnonzero(reasons == reason)
        summary.dropped[reason] += len(dropped)
        for first in range(0, len(dropped), 10 * EXAMPLES_PER_REASON):  # a few at a time, to bound memory
            part = rows.take(pa.array(dropped[first : first + 10 * EXAMPLES_PER_REASON]))
            summary.add_examples(reason, part.select(_EXAMPLE_COLUMNS).to_pylist())


def _vectors(work: StageWork, span: tuple[int, int]) -> dict[str, np.ndarray]:
    by_content: dict[str, np.ndarray] = {}
    for info in work.vectors:
        table = read_part(work.dataset, info, span)
        if len(table):
            vectors = vectors_of(table["vector"])
            by_content.update(zip(table["sha256"].to_pylist(), vectors, strict=True))
    return by_content
