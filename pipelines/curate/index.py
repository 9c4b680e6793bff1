"""Index: read each raw shard once and write a table of image rows and a table of embeddings."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.annotators.embedder import NO_EMBEDDER
from lookalike.data.formats import HEIC_EXTENSIONS
from lookalike.data.images import EXTENSIONS, ImageError, decode, decode_noted
from lookalike.data.passed_over import PassedOver
from lookalike.data.shards import BrokenTarError, Sample, iter_samples, open_object
from lookalike.data.text import escaped
from lookalike.errors import LookalikeError, describe
from lookalike.storage import ObjectInfo, Store
from pipelines.actors import Columns, retried
from pipelines.curate.changed import read_image
from pipelines.curate.compressed import compression_of, unpack
from pipelines.curate.config import CurateConfig
from pipelines.curate.features import FEATURE_SIDE, features
from pipelines.curate.inputs import Inputs
from pipelines.curate.labels import FIELDS, MASKS, read_labels, read_mask
from pipelines.curate.rows import IMAGE_SCHEMA, sha256, subject_hash
from pipelines.curate.tables import read_table, vectors_array, with_notes, write_table
from pipelines.curate.workspace import shard_id

_DECODE_SIDE = FEATURE_SIDE + 8  # px; enough for the features, and for the embedders' central crop
_ERROR_CHARACTERS = 500  # maximum length of the column ``error``
_EMBED_BATCH = 32  # images; batches never cross a shard
_NOT_DECODED: dict[str, Any] = {
    "offset": -1, "length": 0, "sha256": None, "width": 0, "height": 0, "phash": 0, "sharpness": 0.0, "luma_mean": 0.0,
    "luma_std": 0.0, "subject_area": None, "cut": False, "linked": False, "error": "", "note": "",
}  # fmt: skip
_READ = ("json", "txt", *MASKS)  # members of a sample that are read besides its image

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexWork:
    """What the units of the index share."""

    config: CurateConfig
    inputs: Inputs
    raw: Store
    dataset: Store


@dataclass(frozen=True)
class RawShard:
    """The unit of the index."""

    number: int
    """In the order of the raw shards' keys."""
    info: ObjectInfo

    @property
    def id(self) -> str:
        """As in the keys of its results."""
        return shard_id(self.info)


class ShardIndexer:
    """An actor that holds the embedder; each call indexes one raw shard."""

    def __init__(self, work: IndexWork) -> None:
        from lookalike.annotators.embedder import load_embedder

        self._work = work
        # without a model torch is not needed, and its import takes as long as two hundred images
        device = "cpu" if work.config.embedder == NO_EMBEDDER else work.config.actors.prepare()
        self._embedder = load_embedder(work.config.embedder, device)

    def __call__(self, shard: RawShard) -> Columns:
        """Index one shard. For a shard that cannot be read, return the ``error``, so that the others are indexed."""
        images, what = 0, ""
        try:
            images = retried(lambda: self._index(shard))
        except Exception as error:  # any exception of one shard is reported, and the others are indexed
            what = str(error)
            if not isinstance(error, LookalikeError):
                log.exception("raw shard %s cannot be indexed", shard.info.key)
                what = describe(error)
        return {"shard": np.array([shard.number]), "images": np.array([images]), "error": np.array([what], object)}

    def _index(self, shard: RawShard) -> int:
        config, inputs, raw, dataset = self._work.config, self._work.inputs, self._work.raw, self._work.dataset
        info = shard.info
        rows_key, vectors_key = inputs.workspace.rows(shard.id), inputs.workspace.vectors(shard.id)
        known = read_table(dataset, rows_key, columns=IMAGE_SCHEMA.names) if dataset.exists(rows_key) else None
        if known is not None and dataset.exists(vectors_key):  # Ray runs a task again whose process died
            return len(known)
        store, place, broken = raw, info, ""
        compression = compression_of(raw, info)
        if compression is not None:
            store, key = dataset, inputs.workspace.unpacked(shard.id)
            place, broken = unpack(raw, info, compression, dataset, key, config.limits)
        members = PassedOver()
        if known is None:
            source = read_images(open_object(store, place), info.key, config, members, broken)
        else:  # written by a run with another embedder
            source = read_again(raw, dataset, known, "" if compression is None else place.key)
        rows: list[dict[str, Any]] = []
        vectors: dict[str, np.ndarray] = {}
        batch: dict[str, np.ndarray] = {}
        for row, pixels in source:
            rows.append(row)
            if pixels is not None and row["sha256"] not in vectors:
                batch[row["sha256"]] = pixels
            if len(batch) == _EMBED_BATCH:
                vectors |= self._embed(batch)
                batch = {}
        vectors |= self._embed(batch)
        order = [("subject_hash", "ascending"), ("offset", "ascending")]
        table = pa.Table.from_pylist(rows, IMAGE_SCHEMA).sort_by(order)
        write_table(dataset, vectors_key, self._vector_table(table, vectors))
        if known is None:
            notes = {"members": members.to_json(), "unpacked": compression is not None}
            write_table(dataset, rows_key, with_notes(table, notes))
        return len(rows)

    def _embed(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(batch, self._embedder(list(batch.values())), strict=True)) if batch else {}

    def _vector_table(self, rows: pa.Table, vectors: dict[str, np.ndarray]) -> pa.Table:
        """Return the vector of each decodable row of the image table, in the same order."""
        embedded = [content in vectors for content in rows["sha256"].to_pylist()]
        table = rows.select(["subject_hash", "sha256"]).filter(pa.array(embedded, pa.bool_()))
        vectors_ND = [vectors[content] for content in table["sha256"].to_pylist()]
        return table.append_column("vector", vectors_array(np.reshape(vectors_ND, (-1, self._embedder.dim))))


def index_shard(work: IndexWork, shard: RawShard) -> Columns:
    """Index one shard as a task, for runs without an embedder."""
    return ShardIndexer(work)(shard)


def read_images(
    file: Any, shard: str, config: CurateConfig, members: PassedOver | None = None, broken: str = ""
) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """Yield a row for each sample of a raw shard, and its pixels (uint8 [H, W, 3], or any if there is no embedder) at a
    reduced scale if it decodes.

    A shard that breaks off ends with a row for each sample that is known to be cut, or with one that has no key.
    ``broken`` is the error of the compressed shard that the tar came from, if any. ``members`` counts the members that
    are not read.
    """
    members = members or PassedOver()
    try:
        for sample, payload in iter_samples(file, members, config.limits):
            extension = next((name for name in sample.members if name in EXTENSIONS), None)
            for name in sample.members:  # the row of a sample without an image names them
                if extension is not None and name not in (extension, *_READ):
                    members.add("second_image" if name in EXTENSIONS else "not_read", f"{sample.key}.{name}")
            yield _read_sample(sample, payload, extension, shard, config)
    except BrokenTarError as error:
        for key in error.lost_keys or ("",):
            yield _row(key, shard, cut=True, error=error.what), None
    else:
        if broken:
            yield _row("", shard, cut=True, error=f"the shard breaks off: {broken}"), None


def read_again(
    raw: Store, dataset: Store, rows: pa.Table, unpacked: str
) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """Yield the rows of a shard that was indexed before, and the pixels of its images, which are read by range.

    ``unpacked`` is the key of the tar in a compressed shard, else empty.
    """
    for row in rows.to_pylist():
        pixels = None
        if not row["error"]:
            pixels = decode(read_image(raw, dataset, row | {"unpacked": unpacked}), _DECODE_SIDE)
        yield row, pixels


def _read_sample(
    sample: Sample, payload: dict[str, bytes], extension: str | None, shard: str, config: CurateConfig
) -> tuple[dict[str, Any], np.ndarray | None]:
    notes: list[str] = []
    known: dict[str, Any] = {}  # columns of the row
    pixels = None
    try:
        known |= read_labels(sample.key, payload, config.labels, notes)
        if extension is None:  # it may be a renamed JPEG; if not, the error names the extra that reads HEIC
            extension = next((name for name in sample.members if name in HEIC_EXTENSIONS), None)
        if extension is None:
            raise ImageError(f"no image among {sorted(sample.members)}")
        member, data = sample.members[extension], payload[extension]
        known |= {"offset": member.offset, "length": member.length, "linked": member.linked, "sha256": sha256(data)}
        photo = decode_noted(data, _DECODE_SIDE, config.limits.max_pixels, luma=True)
        notes += [f"image: {photo.note}"] if photo.note else []
        area = read_mask(payload, (photo.height, photo.width), notes, config.limits.max_pixels)
        known |= {"width": photo.width, "height": photo.height, "subject_area": area, **features(photo.pixels)}
        pixels = photo.rgb
        if pixels is None:
            pixels = photo.pixels if config.embedder == NO_EMBEDDER else decode(data, _DECODE_SIDE)
    except ImageError as error:
        known["error"] = error.what
    except Exception as error:  # one sample never fails the shard
        log.warning("%s: sample %r cannot be read", shard, sample.key, exc_info=True)
        known["error"] = describe(error)[:_ERROR_CHARACTERS]
    return _row(sample.key, shard, **known, note="; ".join(notes)), pixels


def _row(key: str, shard: str, **values: Any) -> dict[str, Any]:
    row = {"key": key, "shard": shard, **dict.fromkeys(FIELDS, ""), **_NOT_DECODED, **values}
    row |= {name: escaped(value) for name, value in row.items() if isinstance(value, str)}
    row["subject_hash"] = subject_hash(row["subject"])
    return row
