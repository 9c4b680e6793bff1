"""Prepare samples: read rows of a snapshot and convert them to a model's inputs, with or without Ray.

A row that cannot be read or prepared becomes a blank sample of weight 0 with the reason.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.bundles.load import load_preprocessor
from lookalike.bundles.transfer import local_bundle
from lookalike.data.parts import PartedTable
from lookalike.data.permutation import Permutation
from lookalike.data.triplet_files import ShardError, load_many
from lookalike.data.triplets import Split, open_triplets
from lookalike.errors import InputError, LookalikeError, UnreachableError, describe
from lookalike.models.components import token_shape
from lookalike.models.preprocess import Preprocessor, ragged
from lookalike.storage import Store, open_store
from lookalike.training.epoch_plan import PADDING

log = logging.getLogger(__name__)

Columns = dict[str, npt.NDArray[Any]]
Row = dict[str, Any]
Latents = tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]

_AT_ONCE = 16  # samples that are read at once
_SHOWN = 500  # characters of a prompt or of a reason that are kept with a sample
_FAR_FROM_UNIT = 100.0  # mean square of latents, which have unit variance; damaged ones have millions


@dataclass(frozen=True)
class TripletSource:
    """Source of samples: one split of one snapshot version, prepared for one bundle's models."""

    snapshot_uri: str
    """URI of the version, ``…/v0001``."""
    split: Split
    bundle_uri: str
    """Bundle whose tokenizer and image processing prepare the rows."""
    latents: bool = False
    """Whether the snapshot's latents are read, because they equal those of the bundle's VAE."""
    snapshot_sha256: str | None = None
    """Fingerprint of the version's manifest, which has the hash of the table, which has those of the images."""
    bundle_sha256: str | None = None

    def table(self) -> PartedTable:
        """The rows of the split, which are read by their number."""
        return _table(self.snapshot_uri, self.split, self.snapshot_sha256)


@dataclass(frozen=True)
class _Sample:
    columns: Columns
    """The preprocessor's, of one row."""
    sample_id: str
    subject: str = ""
    prompt: str = ""
    reason: str = ""
    fatal: bool = False


@lru_cache(maxsize=4)
def _table(snapshot_uri: str, split: Split, snapshot_sha256: str | None) -> PartedTable:
    return open_triplets(open_store(snapshot_uri), split, snapshot_sha256)


@lru_cache(maxsize=2)
def _preprocessor(bundle_uri: str, bundle_sha256: str | None) -> Preprocessor:
    return load_preprocessor(local_bundle(bundle_uri, bundle_sha256))


def prepare(source: TripletSource, indices: npt.NDArray[np.int64]) -> Columns:
    """Read and prepare samples: the preprocessor's columns, ``sample_id``, ``subject`` and ``prompt`` (str), ``weight``
    (f32), ``reason`` (str) and ``fatal`` (bool).

    With ``source.latents`` there are also ``target_latents`` float16 ``[B, T, C]`` and ``reference_latents``, objects
    ``[B]`` of float16 ``[n, T', C]``, and the VAE's images have no channels.

    A padding slot repeats the first row with weight 0. A row that cannot be read or prepared is a blank sample with
    weight 0 and a ``reason``; ``fatal`` means that its whole shard, or its part of the table, cannot be read, and
    ``reason`` is then the error's what, value and fix as JSON.

    Raises UnreachableError if the store does not answer.
    """
    store, places = open_store(source.snapshot_uri), np.where(indices == PADDING, 0, indices)
    unique, made = np.unique(places), {}
    for first in range(0, len(unique), _AT_ONCE):
        part = unique[first : first + _AT_ONCE]
        ids, rows = _rows(source, part)
        for index, sample_id, loaded in zip(part, ids, _load(store, rows, source.latents), strict=True):
            made[index] = _sample(source, sample_id, loaded)
    samples = [made[index] for index in places]
    columns = {name: np.concatenate([s.columns[name] for s in samples]) for name in samples[0].columns}
    for name in ("sample_id", "subject", "prompt", "reason", "fatal"):
        columns[name] = np.array([getattr(sample, name) for sample in samples])
    columns["weight"] = (columns["reason"] == "").astype(np.float32)
    return without_padding(columns, indices)


def without_padding(columns: Columns, indices: npt.NDArray[np.int64]) -> Columns:
    """Set weight 0 and no ``reason`` in the padding slots of ``indices``."""
    real = indices != PADDING
    weight, reason = columns["weight"] * real.astype(np.float32), np.where(real, columns["reason"], "")
    return {**columns, "weight": weight, "reason": reason, "fatal": columns["fatal"] & real}


def of_step(columns: Columns, step: int) -> Columns:
    """Add to a rank's samples of ``step`` the step, and the number of samples that could not be prepared."""
    rows = len(columns["weight"])
    failed = int((columns["reason"] != "").sum())
    return {**columns, "step": np.full(rows, step), "failed_in_step": np.full(rows, failed)}


def _rows(source: TripletSource, indices: npt.NDArray[np.int64]) -> tuple[list[str], list[Row | Exception]]:
    """Read the rows with these numbers, and their ids; an error stands for a row that cannot be read."""
    try:
        table = source.table().take(indices)
    except InputError as error:
        if len(indices) == 1:
            return [f"row {indices[0]}"], [ShardError(error.what, value=error.value, fix=error.fix)]
        alone = [_rows(source, indices[place : place + 1]) for place in range(len(indices))]
        return [names[0] for names, _ in alone], [rows[0] for _, rows in alone]
    ids, rows = [f"row {index}" for index in indices], list[Row | Exception]()
    for place in range(len(indices)):
        try:
            ids[place] = str(table["triplet_id"][place].as_py() or ids[place])[:_SHOWN]
            rows.append(table.slice(place, 1).to_pylist()[0])
        except UnicodeDecodeError as error:
            rows.append(error)
    return ids, rows


@dataclass(frozen=True)
class _Loaded:
    """A row of the table and what its files hold."""

    row: Row
    target: npt.NDArray[np.uint8]
    references: list[npt.NDArray[np.uint8]]
    latents: Latents | None
    """Of target and references; None unless they were requested."""


def _load(store: Store, rows: list[Row | Exception], latents: bool) -> Iterator[_Loaded | Exception]:
    """Yield the photos, and with ``latents`` the latents, of each row; an error stands for those that cannot be read.

    All files are read at once; the photos of one row are in memory at a time.
    """
    found = load_many(store, [row for row in rows if not isinstance(row, Exception)], latents=latents)
    for row in rows:
        each = row if isinstance(row, Exception) else next(found)
        if isinstance(row, Exception) or isinstance(each, Exception):
            yield each  # type: ignore[misc]  # it is an exception
            continue
        tokens = None
        if each.target_latents is not None and each.reference_latents is not None:
            tokens = each.target_latents, each.reference_latents
        yield _Loaded(row, each.target, each.references, tokens)


def _sample(source: TripletSource, sample_id: str, loaded: _Loaded | Exception) -> _Sample:
    preprocessor = _preprocessor(source.bundle_uri, source.bundle_sha256)
    blank = _blank(source.bundle_uri, source.latents, source.bundle_sha256)
    try:
        if isinstance(loaded, Exception):
            raise loaded
        row, references = loaded.row, loaded.references
        columns: Columns = preprocessor(
            [row["prompt"]],
            [references],
            [loaded.target],
            truncate_prompts=True,
            on_cut=_say_once,
            vae_pixels=loaded.latents is None,
        )
        if loaded.latents is not None:
            columns |= _latents(loaded.latents, blank, len(references))
        return _Sample(columns, row["triplet_id"], row["subject"], row["prompt"][:_SHOWN])
    except (UnreachableError, MemoryError):
        raise
    except ShardError as error:
        reason = json.dumps([error.what, error.value, error.fix])
        return _Sample(blank, sample_id, reason=reason, fatal=True)
    except Exception as error:  # whatever a tokenizer raises for this one sample, or what reading it has raised
        reason = describe(error)
        if isinstance(error, LookalikeError) and error.value not in (None, sample_id):
            reason += f" ({error.value})"
        log.debug("sample %s cannot be prepared", sample_id, exc_info=True)
        return _Sample(blank, sample_id, reason=reason[:_SHOWN])


@lru_cache(maxsize=4)
def _blank(bundle_uri: str, latents: bool, bundle_sha256: str | None) -> Columns:
    """Return a grey image without a prompt, which replaces a sample that cannot be prepared."""
    preprocessor = _preprocessor(bundle_uri, bundle_sha256)
    preset = preprocessor.preset
    grey = np.full((preset.height, preset.width, 3), 127, np.uint8)
    columns: Columns = preprocessor([""], [[grey]], [grey], vae_pixels=not latents)
    if latents:
        side, channels = token_shape(local_bundle(bundle_uri))
        grid = preset.references
        tokens = (preset.height // side) * (preset.width // side)
        reference_tokens = (grid.height // side) * (grid.width // side)
        columns["target_latents"] = np.zeros((1, tokens, channels), np.float16)
        columns["reference_latents"] = ragged([np.zeros((1, reference_tokens, channels), np.float16)])
    return columns


def _latents(loaded: Latents, blank: Columns, references: int) -> Columns:
    """Check shapes and values of the latents of one sample, and return them as columns."""
    target, given = (latents.astype(np.float16, copy=False) for latents in loaded)
    expected = [blank["target_latents"].shape[1:], (references, *blank["reference_latents"][0].shape[1:])]
    if [target.shape, given.shape] != expected:
        raise InputError(
            f"latents of shapes {target.shape} and {given.shape}, not {expected[0]} and {expected[1]}",
            fix="curate again with shards.latents set to this base",
        )
    for latents in (target, given):
        spread = float(np.square(latents, dtype=np.float64).mean())
        if not spread <= _FAR_FROM_UNIT:
            raise InputError(f"the latents are damaged: their mean square is {spread:.3g}", fix="curate again")
    return {"target_latents": target[None], "reference_latents": ragged([given])}


_said: set[str] = set()


def _say_once(prompt: str, cut: str) -> None:
    """Log only the first caption that is cut, since a data set with one usually has many."""
    if not _said:
        log.warning("captions are longer than the model reads; of the first, this part is cut off: %r", cut[:120])
    _said.add("cut")


def validation_indices(source: TripletSource, samples: int) -> npt.NDArray[np.int64]:
    """Return the same ``samples`` rows each time, spread over the whole split so that neighbours are other subjects.

    A split with fewer rows repeats them.
    """
    rows = len(source.table())
    return Permutation(rows, (0,))(np.arange(samples) % rows)
