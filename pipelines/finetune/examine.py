"""Examine a customer's photos with the code of ingest and curation, in memory and without Ray.

The rows, the filters, the choice of held-out photos and the pairs are those of the curation that a finetune runs
(:func:`~pipelines.finetune.parts.curation_of`), so what is said here is what happens there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from lookalike.annotators.base import checked
from lookalike.annotators.embedder import NO_EMBEDDER, load_embedder
from lookalike.data.images import decode
from lookalike.data.shards import open_object
from lookalike.errors import InputError
from lookalike.scratch import scratch
from lookalike.storage import Store, open_store
from lookalike.values import configuration
from pipelines.curate.compressed import compression_of
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import Photos
from pipelines.curate.filters.exact_duplicate import ExactDuplicate
from pipelines.curate.filters.off_subject import OffSubject
from pipelines.curate.index import read_images
from pipelines.curate.plan_rows import plan_rows
from pipelines.curate.raw import is_shard
from pipelines.curate.rows import ROW_SCHEMA
from pipelines.curate.screen import screen
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.intake import take_in
from pipelines.finetune.parts import curation_of
from pipelines.finetune.photos import PhotoSet
from pipelines.ingest import IngestConfig
from pipelines.ingest.folder import plan_folder

_HELD_OUT = "held_out"


@dataclass(frozen=True)
class Examined:
    """One photo, as curation sees it."""

    name: str
    """As the customer named it; of a raw shard, the key of the sample."""
    use: str
    """``train``, ``held out`` or ``refused``."""
    reason: str = ""
    """Why it is refused: the name of the filter, or what is wrong with the file."""
    width: int = 0
    height: int = 0
    """Upright, px; 0 if it cannot be decoded."""
    sharpness: float = 0.0
    """Variance of the Laplacian at a short side of 256 px."""
    similarity: float | None = None
    """Median cosine similarity to the other photos, -1 to 1; null for a photo without an embedding."""
    note: str = ""


@dataclass(frozen=True)
class Examination:
    """What curation would make of the photos."""

    photos: tuple[Examined, ...]
    triplets: int
    """To train on."""
    groups: tuple[tuple[str, ...], ...]
    """Names of the photos of each subject, if they show two; else empty."""

    def number(self, use: str) -> int:
        """How many photos have this use."""
        return sum(photo.use == use for photo in self.photos)


@configuration("several_subjects")
class SeveralSubjects:
    """When photos count as those of two subjects: two groups of at least two photos, the photos of each group alike and
    those of different groups not."""

    max_between: float = OffSubject.max_similarity
    """Mean cosine similarity between two groups, above which they are one subject."""
    min_gap: float = OffSubject.min_gap
    """How much lower it has to be than the mean similarity within each group."""

    def split(self, similarity_NN: np.ndarray) -> np.ndarray:
        """Return the group of each photo, int [N], 1 or 2; all 1 if they show one subject.

        Args:
            similarity_NN: cosine similarities, float [N, N], symmetric.
        """
        n = len(similarity_NN)
        one = np.ones(n, int)
        if n < 4:
            return one
        distance_NN = np.clip(1 - similarity_NN, 0, 2)
        np.fill_diagonal(distance_NN, 0)
        groups = fcluster(linkage(squareform(distance_NN, checks=False), "average"), 2, "maxclust")
        first = groups == groups[0]
        if min(first.sum(), (~first).sum()) < 2:
            return one
        between = similarity_NN[first][:, ~first].mean()
        within = min(_mean_of_pairs(similarity_NN[group][:, group]) for group in (first, ~first))
        return np.where(first, 1, 2) if between <= self.max_between and within - between >= self.min_gap else one


def examine(config: FinetuneConfig, photos: PhotoSet, max_references: int = 2) -> Examination:
    """Take the photos in and curate them in a temporary folder, which is removed.

    Raises InputError: a sidecar is not valid, no photo can be decoded, or a raw shard is compressed.
    """
    with scratch("examine") as folder:
        names: dict[str, str] = {}
        refused: list[Examined] = []
        raw = photos.store
        if not photos.raw:
            given, raw = open_store(str(folder / "given")), open_store(str(folder / "raw"))
            for row in take_in(photos, given, config.subject, config.class_name):
                if row.reason:
                    refused += [Examined(row.name, "refused", row.reason)] if row.name in photos.photos else []
                else:
                    stem = row.key.rpartition("/")[2].partition(".")[0]
                    names[f"{config.subject}-{stem}"] = row.name
            (folder / "raw").mkdir()
            for shard in plan_folder(IngestConfig(source=given.uri, raw=raw.uri)).shards:
                shard.write(Path(folder / "raw" / shard.name))
        assert raw is not None
        curation = curation_of(config, raw.uri, str(folder / "dataset"), max_references, "dropped")
        return _judge(curation, raw, names, refused)


def _judge(curation: CurateConfig, raw: Store, names: dict[str, str], refused: list[Examined]) -> Examination:
    rows, vectors, images = _index(curation, raw)
    photos = Photos(rows, np.arange(len(rows))[None], vectors)
    scores = {
        name: _scored(step.scorer, rows, images) for name, step in curation.filters.scored() if step.scorer is not None
    }
    reasons = screen(rows, curation.filters)
    plan = plan_rows(rows, reasons, vectors, ExactDuplicate().drop(Photos(rows)), curation, scores)
    similarity_NN = photos.similarity[0]
    embedded = np.flatnonzero(vectors.any(axis=1))
    found = []
    for number, row in enumerate(plan.images.to_pylist()):
        reason = row["drop_reason"] or ""
        use = "held out" if reason == _HELD_OUT else "refused" if reason else "train"
        others = embedded[embedded != number]
        alike = float(np.median(similarity_NN[number, others])) if number in embedded and len(others) else None
        name = names.get(row["key"], row["key"])
        why = "" if reason == _HELD_OUT else f"{reason}: {row['error']}" if row["error"] else reason
        size = (row["width"], row["height"], round(row["sharpness"], 1))
        found.append(Examined(name, use, why, *size, None if alike is None else round(alike, 3), row["note"]))
    usable = [number for number, photo in enumerate(found) if photo.use != "refused"]
    split = SeveralSubjects().split(similarity_NN[np.ix_(usable, usable)])
    by_group = tuple(
        tuple(found[usable[i]].name for i in np.flatnonzero(split == group)) for group in (1, 2) if (split == 2).any()
    )
    ordered = tuple(sorted([*found, *refused], key=lambda photo: photo.name))
    return Examination(ordered, plan.summary.triplets, by_group)


def _index(curation: CurateConfig, raw: Store) -> tuple[pa.Table, np.ndarray, dict[str, bytes]]:
    """The rows of all samples in the order of the plan, their embeddings [N, D] (zero without one), and their bytes."""
    rows: list[dict[str, object]] = []
    pixels: dict[str, np.ndarray] = {}
    files: dict[str, bytes] = {}
    for shard, file in _shards(raw):
        for row, image in read_images(file, shard, curation):
            rows.append({**row, "unpacked": ""})
            if image is not None:
                pixels[row["sha256"]] = image
                files[row["sha256"]] = raw.read_range(shard, row["offset"], row["length"])
    order = [(name, "ascending") for name in ("subject_hash", "subject", "shard", "offset", "key")]
    table = pa.Table.from_pylist(rows, ROW_SCHEMA).sort_by(order)
    embedder = load_embedder(curation.embedder)
    vectors = dict(zip(pixels, embedder(list(pixels.values())), strict=True)) if pixels else {}
    none = np.zeros(embedder.dim, np.float32)
    found = [vectors.get(content, none) for content in table["sha256"].to_pylist()]
    if curation.embedder == NO_EMBEDDER:
        return table, np.zeros((len(table), 1), np.float32), files
    return table, np.asarray(found, np.float16), files


def _shards(raw: Store) -> Iterator[tuple[str, object]]:
    for info in raw.list():
        if is_shard(info.key):
            if compression_of(raw, info) is not None:
                fix = "unpack it, or run the finetune, which checks it when it curates"
                raise InputError("a compressed raw shard is not examined", value=raw.uri_of(info.key), fix=fix)
            yield info.key, open_object(raw, info)


def _scored(scorer: object, rows: pa.Table, files: dict[str, bytes]) -> np.ndarray:
    """The answer of a filter's model for each row, float64 [N]; NaN for one without an image."""
    load, side = scorer.load("cpu"), scorer.side  # type: ignore[attr-defined]
    answers = np.full(len(rows), np.nan)
    for number, row in enumerate(rows.select(["sha256", "class_name"]).to_pylist()):
        if row["sha256"] in files:
            value = load([decode(files[row["sha256"]], side)], [row["class_name"]])[0]
            answers[number] = round(checked(scorer, value), 3)  # type: ignore[arg-type]
    return answers


def _mean_of_pairs(similarity_NN: np.ndarray) -> float:
    n = len(similarity_NN)
    return float((similarity_NN.sum() - np.trace(similarity_NN)) / (n * (n - 1)))
