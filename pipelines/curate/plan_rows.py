"""Decide from image rows and embeddings alone which images are kept and form which triplets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.annotators.embedder import NO_EMBEDDER
from lookalike.errors import InputError
from pipelines.curate.captions import fit_captions
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import SCORE, Filter, Photos
from pipelines.curate.filters.large_subject import LargeSubject
from pipelines.curate.groups import Groups
from pipelines.curate.pairs import reference_sets
from pipelines.curate.rows import PLAN_SCHEMA, ROW_SCHEMA, SUBJECT_SCHEMA, content_hashes, unit_hashes
from pipelines.curate.summary import EXAMPLES_PER_REASON, Summary

_EXAMPLE_COLUMNS = ("key", "shard", "offset", "length", "sha256", "unpacked", "subject", "error", "note", "phash")

# Legend: N rows, G subjects, B subjects with the same number M of photos, O of these, T targets, S reference sets,
# R references.


@dataclass(frozen=True)
class Planned:
    """The plan of a range of subjects."""

    images: pa.Table
    """:data:`PLAN_SCHEMA`: all rows, in their order."""
    subjects: pa.Table
    """:data:`SUBJECT_SCHEMA`: the subjects that have triplets, in the order of their rows. The split hash is that of
    the subject's own name."""
    summary: Summary
    """Counts of all rows."""


def plan_rows(
    rows: pa.Table,
    reasons: np.ndarray,
    vectors: np.ndarray,
    repeated: np.ndarray,
    config: CurateConfig,
    scores: Mapping[str, np.ndarray] | None = None,
    captions: pa.Array | None = None,
) -> Planned:
    """Plan all subjects of a table. The result depends on nothing else, and each subject's plan on its own rows only.

    Args:
        rows: :data:`ROW_SCHEMA`, N rows in the order of subject_hash, subject, shard, offset and key.
        reasons: The image filter that drops each row, empty if none does: str or object [N].
        vectors: Embeddings of any norm, zero for a row without one: float16 or float32 [N, D].
        repeated: Which rows repeat the file of an earlier one, across all subjects: bool [N].
        config: The settings.
        scores: For each filter with a model, its scores, NaN for a row without one: float64 [N].
        captions: Answers of the captioner, null for a row without one: string [N].

    Raises:
        InputError: If an image that the other filters keep has no embedding.
    """
    rows = _with_captions(rows.select(ROW_SCHEMA.names), captions)
    rows = fit_captions(rows, config.captions).combine_chunks()
    drops = Drops.of(reasons, config)
    photos = Photos(rows, vectors=vectors)
    _drop_one_by_one(photos, drops, repeated, scores or {}, config)
    groups = Groups.of(rows, drops.numbers == 0)
    summary = Summary(images=len(rows), subjects_in=int(pc.sum(pc.not_equal(groups.names, "")).as_py() or 0))
    chosen, steps = _Chosen(len(rows)), list(config.filters.steps("subject"))
    for batches in groups.batches(photos):
        for kept in drop_of_subjects(batches, steps, drops, embedded=config.embedder != NO_EMBEDDER):
            _pair(kept, groups, config, chosen, summary)
    _count(summary, rows, drops)
    bounded = [name for name, step in config.filters.steps("subject") if isinstance(step, LargeSubject)]
    summary.bounded_subjects = len(np.unique(groups.group_of[drops.by(bounded)]))
    subjects = _subjects(rows, groups, chosen, config, photos.contents)
    summary.subjects, summary.triplets = len(subjects), pc.sum(subjects["triplets"]).as_py() or 0
    images = rows.append_column("drop_reason", drops.column())
    references, similarities = chosen.columns()
    images = images.append_column("references", references).append_column("similarities", similarities)
    return Planned(images.cast(PLAN_SCHEMA), subjects, summary)


@dataclass(frozen=True)
class Drops:
    """Why each row is dropped."""

    names: list[str]
    """Reasons; the first is empty."""
    numbers: np.ndarray
    """Number of each row's reason, 0 if it is kept: int64 [N]."""

    @classmethod
    def of(cls, reasons: np.ndarray, config: CurateConfig) -> "Drops":
        """The reasons of the screen; the filters of ``config`` can add theirs."""
        encoded = pa.array(reasons, pa.string()).dictionary_encode()
        names = ["", *(name for name, _ in config.filters.steps())]
        names += [name for name in encoded.dictionary.to_pylist() if name not in names]
        numbers = np.array([names.index(name) for name in encoded.dictionary.to_pylist()], np.int64)
        return cls(names, numbers[encoded.indices.to_numpy()])

    def add(self, name: str, index: np.ndarray) -> None:
        """Drop the rows of ``index``, which are kept so far."""
        self.numbers[index] = self.names.index(name)

    def by(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows that were dropped for one of these reasons."""
        return np.flatnonzero(np.isin(self.numbers, [self.names.index(name) for name in names]))

    def column(self) -> pa.Array:
        """The name of each row's reason, null if it is kept."""
        numbers = pa.array(self.numbers, mask=self.numbers == 0)
        return pa.array(self.names).take(numbers)


@dataclass(frozen=True)
class _Chosen:
    """The reference sets that were chosen so far, one target after another."""

    rows: int
    """Rows of the table."""
    targets: list[np.ndarray] = field(default_factory=list)
    """Row of each target: int64 [T]."""
    sets: list[np.ndarray] = field(default_factory=list)
    """Number of sets of each target: int64 [T]."""
    sizes: list[np.ndarray] = field(default_factory=list)
    """Number of references of each set: int64 [S]."""
    references: list[np.ndarray] = field(default_factory=list)
    """Row of each reference less the first row of its subject: int32 [R]."""
    similarities: list[np.ndarray] = field(default_factory=list)
    """Similarity of each reference to its target: float32 [R]."""

    def sets_of_rows(self) -> np.ndarray:
        """Number of sets of each row."""
        sets_N = np.zeros(self.rows, np.int64)
        sets_N[_joined(self.targets, np.int64)] = _joined(self.sets, np.int64)
        return sets_N

    def columns(self) -> tuple[pa.Array, pa.Array]:
        """Return ``references`` and ``similarities`` of :data:`PLAN_SCHEMA`, in the order of the rows."""
        targets, sets = _joined(self.targets, np.int64), _joined(self.sets, np.int64)
        outer = _offsets(np.append(sets, 0))  # the last list is that of rows without sets
        inner = _offsets(_joined(self.sizes, np.int64))
        place_N = np.full(self.rows, len(targets))
        place_N[targets] = np.arange(len(targets))
        take = pa.array(place_N)
        references, similarities = (
            pa.ListArray.from_arrays(outer, pa.ListArray.from_arrays(inner, pa.array(values))).take(take)
            for values in (_joined(self.references, np.int32), _joined(self.similarities, np.float32))
        )
        return references, similarities


def _joined(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts])


def _offsets(lengths: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _with_captions(rows: pa.Table, captions: pa.Array | None) -> pa.Table:
    """Return the rows, with the captioner's answer as the caption of those without one."""
    if captions is None:
        return rows
    own = rows["caption"].combine_chunks()
    answers = pc.if_else(pc.equal(own, ""), pc.fill_null(captions, ""), own)
    return rows.set_column(rows.schema.get_field_index("caption"), "caption", answers)


def _drop_one_by_one(
    photos: Photos, drops: Drops, repeated: np.ndarray, scores: Mapping[str, np.ndarray], config: CurateConfig
) -> None:
    """Drop repetitions of a file, and what filters drop that see a score."""
    for name, _ in config.filters.steps("content"):
        drops.add(name, np.flatnonzero(repeated & (drops.numbers == 0)))
    none = np.full(len(photos.rows), np.nan)
    for name, step in config.filters.scored():
        left = np.flatnonzero(drops.numbers == 0)
        values = none if step.scorer is None else scores[name]
        drops.add(name, left[step.drop(Photos(photos.rows, left, columns=photos.columns | {SCORE: values}))])


def _require_vectors(batches: Sequence[Photos]) -> None:
    """Raise InputError if a photo has the zero vector, which would drop it as if it resembled no other."""
    for photos in batches:
        assert photos.vectors is not None, "filters of scope 'subject' see embeddings"
        assert photos.index is not None, "batches are of subjects"
        index = photos.index.ravel()
        suspects = index[~photos.vectors[index, :8].any(axis=1)]
        missing = suspects[~photos.vectors[suspects].any(axis=1)]
        if len(missing):
            row = photos.rows.slice(missing[0], 1).select(["shard", "key"]).to_pylist()[0]
            raise InputError(
                f"{len(missing)} images have no embedding",
                value=f"{row['key']} of {row['shard']}",
                fix="remove the tables of embeddings of this raw shard below work/, and run the same command again",
            )


def drop_of_subjects(
    batches: Sequence[Photos], steps: Iterable[tuple[str, Filter]], drops: Drops, *, embedded: bool = False
) -> list[Photos]:
    """Apply the filters that see all photos of a subject; return the photos that are kept.

    With ``embedded``, photos that are compared by their embeddings must have one.

    Raises InputError: a photo has none.
    """
    left, checked = list(batches), not embedded
    for name, step in steps:
        if not checked and "compares_embeddings" in step.traits:
            _require_vectors(left)
            checked = True
        parts: list[Photos] = []
        for photos in left:
            drop = step.drop(photos)
            assert photos.index is not None, "batches are of subjects"
            assert drop.shape == photos.shape, f"filter {name} returned {drop.shape} for photos of {photos.shape}"
            drops.add(name, photos.index[drop])
            parts += photos.split(~drop)
        left = Photos.join(parts)
    return left


def _pair(photos: Photos, groups: Groups, config: CurateConfig, chosen: _Chosen, summary: Summary) -> None:
    """Choose the reference sets of all photos, and count similarities and numbers."""
    index_BM, similarity_BMM = photos.index, photos.similarity
    assert index_BM is not None, "batches are of subjects"
    subjects, number = index_BM.shape

    def places(subjects_O: np.ndarray) -> np.ndarray:
        return content_hashes(["target", config.seed], photos["sha256"][subjects_O])

    pairs_BMM = config.filters.no_pair.pairs(photos)
    if config.filters.held_out is not None:
        pairs_BMM &= config.filters.held_out.pairs(photos)
    sets = reference_sets(similarity_BMM, pairs_BMM, places, config.plan)
    target_R = np.repeat(np.repeat(np.arange(index_BM.size), sets.sets), sets.sizes)
    subject_R, photo_R = np.divmod(target_R, number)
    similarity_R = similarity_BMM[subject_R, photo_R, sets.references]
    start_B = groups.starts[groups.group_of[index_BM[:, 0]]]
    chosen.targets.append(index_BM.ravel())
    chosen.sets.append(sets.sets)
    chosen.sizes.append(sets.sizes)
    chosen.references.append((index_BM[subject_R, sets.references] - start_B[subject_R]).astype(np.int32))
    chosen.similarities.append(similarity_R)
    above = [similarity_BMM[:, i, i + 1 :].ravel() for i in range(number)]
    summary.count("similarity of photos of one subject", np.concatenate(above))
    summary.count("similarity of references to their target", similarity_R)
    summary.count("images kept of a subject", np.full(subjects, number))
    summary.count("triplets of a subject", sets.sets.reshape(subjects, number).sum(axis=1))
    for each in pc.value_counts(photos.rows["class_name"].take(pa.array(index_BM[:, 0]))).to_pylist():
        summary.classes[each["values"]] += each["counts"]


def _subjects(rows: pa.Table, groups: Groups, chosen: _Chosen, config: CurateConfig, content_N: np.ndarray) -> pa.Table:
    """Return the row of each subject that has triplets."""
    sets_N = chosen.sets_of_rows()
    used_N = sets_N > 0
    targets, sets = _joined(chosen.targets, np.int64), _joined(chosen.sets, np.int64)
    start_R = np.repeat(np.repeat(groups.starts[groups.group_of[targets]], sets), _joined(chosen.sizes, np.int64))
    used_N[start_R + _joined(chosen.references, np.int32)] = True
    used = np.flatnonzero(used_N)
    _, first = np.unique(groups.group_of[used] * len(rows) + content_N[used], return_index=True)
    stored = used[first]  # one row of each file of a subject
    lengths = rows["length"].to_numpy()[stored]
    bytes_G = np.zeros(len(groups.starts), np.int64)
    np.add.at(bytes_G, groups.group_of[stored], lengths)
    triplets_G = np.add.reduceat(sets_N, groups.starts) if len(rows) else np.zeros(0, np.int64)
    some = np.flatnonzero(triplets_G)
    names = groups.names.take(pa.array(some))
    return pa.table(
        {
            "subject_hash": rows["subject_hash"].take(pa.array(groups.starts[some])),
            "subject": names,
            "split_hash": unit_hashes(["split", config.seed], names.to_pylist()),
            "triplets": triplets_G[some],
            "bytes": bytes_G[some],
        },
        SUBJECT_SCHEMA,
    )


def _count(summary: Summary, rows: pa.Table, drops: Drops) -> None:
    decoded = pc.equal(rows["error"], "").to_numpy()
    if decoded.any():
        values = {name: rows[name].to_numpy()[decoded] for name in ("width", "height", "sharpness", "luma_mean")}
        summary.count("short side, px", np.minimum(values["width"], values["height"]))
        summary.count("sharpness", values["sharpness"])
        summary.count("brightness", values["luma_mean"])
    kept = pa.array(np.flatnonzero(drops.numbers == 0))
    summary.kept = len(kept)
    summary.add_notes(rows["note"])
    summary.add_captions(
        dict(zip(rows["sha256"].take(kept).to_pylist(), rows["caption"].take(kept).to_pylist(), strict=True))
    )
    counts = np.bincount(drops.numbers, minlength=len(drops.names))
    for number, name in enumerate(drops.names):
        if number and counts[number]:
            summary.dropped[name] += int(counts[number])
            dropped = drops.by([name])
            columns = (rows[column].take(pa.array(dropped)).to_pylist() for column in ("shard", "key", "offset"))
            lowest = np.argsort(unit_hashes(["example"], *columns), kind="stable")[:EXAMPLES_PER_REASON]
            summary.add_examples(name, rows.select(_EXAMPLE_COLUMNS).take(pa.array(dropped[lowest])).to_pylist())
