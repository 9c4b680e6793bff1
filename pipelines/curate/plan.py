"""Plan: for one range of subjects at a time, on rows and embeddings, decide what is kept and what becomes a triplet."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.config import canonical_json
from pipelines.actors import Columns
from pipelines.curate.duplicates import read_duplicates
from pipelines.curate.filters import Photos
from pipelines.curate.languages import count_languages
from pipelines.curate.links import read_components
from pipelines.curate.pairs import reference_sets
from pipelines.curate.rows import PLAN_SCHEMA, SUBJECT_SCHEMA, unit_hash
from pipelines.curate.score import read_scores, with_scores
from pipelines.curate.summary import EXAMPLES_PER_REASON, Summary
from pipelines.curate.tables import read_span, vectors_of, write_table
from pipelines.curate.work import StageWork

_CAPTIONS_READ = 200  # of a partition, for their languages
_EXAMPLE_COLUMNS = ("key", "shard", "offset", "length", "subject", "error", "phash")


def plan_key(work: StageWork, partition: int, kind: str) -> str:
    """Where a partition's ``images``, ``subjects`` (Parquet) and ``summary`` (JSON, written last) are kept."""
    suffix = "json" if kind == "summary" else "parquet"
    return work.inputs.stage_key("plan", f"part-{partition:05d}.{kind}.{suffix}")


def read_summary(work: StageWork, partition: int) -> Summary:
    """What a partition came to."""
    return Summary.from_json(json.loads(work.dataset.read(plan_key(work, partition, "summary"))))


def plan_partition(work: StageWork, partition: int) -> Columns:
    """Plan one range of subjects, unless that was done before."""
    if not work.dataset.exists(plan_key(work, partition, "summary")):
        _plan(work, partition)
    return {"partition": np.array([partition])}


def _plan(work: StageWork, partition: int) -> None:
    span = work.span(partition)
    rows = work.read_rows(span)
    summary = Summary(images=len(rows))
    reasons = np.full(len(rows), "", object)  # empty: kept
    _drop_one_by_one(work, rows, reasons, span)
    rows = _captioned(work, rows, span)
    vectors = _vectors(work, span)
    sets: list[list[list[dict[str, Any]]]] = [[] for _ in range(len(rows))]
    subjects = []
    figures: dict[str, list[np.ndarray]] = {}
    components = read_components(work) if work.linked else {}
    for members in _runs(rows["subject"].to_pylist()):
        kept = members[reasons[members] == ""]
        summary.subjects_in += bool(rows["subject"][members[0]].as_py())
        if len(kept) == 0:
            continue
        photos = Photos(rows.take(pa.array(kept)), _stack(vectors, rows, kept))
        photos, kept = _drop_of_subject(work, photos, kept, reasons)
        if len(kept):
            subjects.append(_pair(work, photos, kept, components, sets, summary, figures))
    for name, values in figures.items():  # counting once costs less than once a subject
        summary.count(name, np.concatenate(values))
    _count(summary, rows, reasons)
    planned = rows.append_column(
        "drop_reason", pa.array([reason or None for reason in reasons], pa.string())
    ).append_column("reference_sets", pa.array(sets, PLAN_SCHEMA.field("reference_sets").type))
    store = work.dataset
    write_table(store, plan_key(work, partition, "images"), planned.cast(PLAN_SCHEMA))
    write_table(store, plan_key(work, partition, "subjects"), pa.Table.from_pylist(subjects, SUBJECT_SCHEMA))
    store.write(plan_key(work, partition, "summary"), canonical_json(summary.to_json()).encode())


def _drop_one_by_one(work: StageWork, rows: pa.Table, reasons: np.ndarray, span: tuple[int, int]) -> None:
    """The filters that see one image at a time, and the duplicates that were found before."""
    for name, step in work.config.filters.steps("image"):
        reasons[step.drop(Photos(rows)) & (reasons == "")] = name
    for name, _ in work.config.filters.steps("content"):
        repeated = read_duplicates(work, span)
        places = zip(rows["shard"].to_pylist(), rows["offset"].to_pylist(), strict=True)
        mask = np.array([place in repeated for place in places], bool)
        reasons[mask & (reasons == "")] = name
    for name, step in work.config.filters.scored():
        scores = {} if step.scorer is None else read_scores(work, step.scorer.revision, span)
        left = np.flatnonzero(reasons == "")
        reasons[left[step.drop(with_scores(rows.take(pa.array(left)), scores))]] = name


def _captioned(work: StageWork, rows: pa.Table, span: tuple[int, int]) -> pa.Table:
    """The rows, with what the captioner says where they have no caption."""
    if work.config.captioner is None:
        return rows
    said = read_scores(work, work.config.captioner.revision, span)
    captions = [row["caption"] or said.get(row["sha256"], "") for row in rows.select(["caption", "sha256"]).to_pylist()]
    return rows.set_column(rows.schema.get_field_index("caption"), "caption", pa.array(captions, pa.string()))


def _drop_of_subject(
    work: StageWork, photos: Photos, kept: np.ndarray, reasons: np.ndarray
) -> tuple[Photos, np.ndarray]:
    """The filters that see all photos of a subject; returns the photos that are left, and their rows."""
    for name, step in work.config.filters.steps("subject"):
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
    kept: np.ndarray,
    components: dict[str, str],
    sets: list[list[list[dict[str, Any]]]],
    summary: Summary,
    figures: dict[str, list[np.ndarray]],
) -> dict[str, Any]:
    """Give each photo of a subject, in the rows ``kept``, its reference sets; returns the subject's row."""
    config = work.config
    images = photos.rows.to_pylist()
    order = sorted(range(len(images)), key=lambda i: unit_hash("target", config.seed, images[i]["sha256"]))
    similarity = photos.similarity
    chosen = reference_sets(similarity, config.filters.no_pair.pairs(photos), order, config.plan)
    used = []
    for target, references in enumerate(chosen):
        sets[kept[target]] = [[_reference(images[i], similarity[target, i]) for i in group] for group in references]
        used += [similarity[target, i] for group in references for i in group]
    triplets = sum(map(len, chosen))
    seen = {
        "similarity of photos of one subject": similarity[np.triu_indices(len(images), 1)],
        "similarity of references to their target": np.array(used),
        "images kept of a subject": np.array([len(images)]),
        "triplets of a subject": np.array([triplets]),
    }
    for name, values in seen.items():
        figures.setdefault(name, []).append(values)
    summary.subjects += 1
    summary.triplets += triplets
    first = images[0]
    summary.classes[first["class_name"]] += 1
    lengths = [image["length"] for image in images]
    size = sum(lengths[t] + sum(lengths[i] for i in group) for t, groups in enumerate(chosen) for group in groups)
    return {
        "subject_hash": first["subject_hash"],
        "subject": first["subject"],
        "split_hash": unit_hash("split", config.seed, components.get(first["subject"], first["subject"])),
        "triplets": triplets,
        "bytes": size,
    }


def _reference(image: dict[str, Any], similarity: float) -> dict[str, Any]:
    return {name: image[name] for name in ("sha256", "shard", "offset", "length")} | {"similarity": float(similarity)}


def _count(summary: Summary, rows: pa.Table, reasons: np.ndarray) -> None:
    decoded = Photos(rows.filter(pa.array(np.array(rows["error"].to_pylist(), object) == "")))
    if len(decoded):
        summary.count("short side, px", np.minimum(decoded["width"], decoded["height"]))
        summary.count("sharpness", decoded["sharpness"])
        summary.count("brightness", decoded["luma_mean"])
    kept = rows.filter(pa.array(reasons == "", pa.bool_()))
    summary.kept = len(kept)
    captions = dict(zip(kept["sha256"].to_pylist(), kept["caption"].to_pylist(), strict=True))
    summary.languages = count_languages(captions[content] for content in sorted(captions)[:_CAPTIONS_READ])
    for reason in set(reasons) - {""}:
        dropped = np.flatnonzero(reasons == reason)
        summary.dropped[reason] += len(dropped)
        for first in range(0, len(dropped), 10 * EXAMPLES_PER_REASON):  # a few at a time, so that few are in memory
            part = rows.take(pa.array(dropped[first : first + 10 * EXAMPLES_PER_REASON]))
            summary.add_examples(reason, part.select(_EXAMPLE_COLUMNS).to_pylist())


def _vectors(work: StageWork, span: tuple[int, int]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for info in work.vectors:
        table = read_span(work.dataset, info, span)
        if len(table):
            vectors = vectors_of(table["vector"], table.schema.field("vector").type.list_size)
            found.update(zip(table["sha256"].to_pylist(), vectors, strict=True))
    return found


def _stack(vectors: dict[str, np.ndarray], rows: pa.Table, members: np.ndarray) -> np.ndarray:
    return np.stack([vectors[content] for content in rows["sha256"].take(pa.array(members)).to_pylist()])


def _runs(subjects: list[str]) -> Iterator[np.ndarray]:
    """Positions of each subject's rows, which lie side by side."""
    first = 0
    for i in range(1, len(subjects) + 1):
        if i == len(subjects) or subjects[i] != subjects[first]:
            yield np.arange(first, i)
            first = i
