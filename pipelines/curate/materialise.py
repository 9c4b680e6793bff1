"""Materialise: read the images of planned triplets by range and write deterministic shards."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import local_bundle
from lookalike.config import canonical_json, fingerprint
from lookalike.data import triplets
from lookalike.data.images import decode, decodes_as_it_is, encode_jpeg, fit_within, short_side
from lookalike.data.shards import Sample, write_tar
from lookalike.pixels import crop_resize
from lookalike.scratch import scratch
from lookalike.storage import read_object
from pipelines.actors import Columns
from pipelines.curate.config import ShardsConfig
from pipelines.curate.filters.exact_duplicate import ExactDuplicate
from pipelines.curate.tables import write_table
from pipelines.curate.work import MaterialiseWork, ShardPlan, StageWork

_JPEG = b"\xff\xd8\xff"
_LATENTS = "latents.safetensors"

Encode = Callable[[bytes, list[bytes]], bytes]
"""A function from the files of a target and its references to the file of their latents."""


class ShardWriter:
    """:func:`write_shard` in an actor that holds the VAE of a bundle, and encodes at the sizes of its model."""

    def __init__(self, work: MaterialiseWork) -> None:
        from lookalike.models.vae import LatentCache, load_vae

        config = work.stage.config
        folder = local_bundle(str(config.shards.latents))
        preset = read_preset(folder)
        self._work = work
        self._target_size = preset.height, preset.width
        self._reference_size = preset.references.height, preset.references.width
        self._vae = load_vae(folder).to(config.actors.prepare())
        self._cache = LatentCache()  # a photo is in several triplets of its subject

    def __call__(self, unit: int) -> Columns:
        return write_shard(self._work, unit, self._latents)

    def _latents(self, target: bytes, references: list[bytes]) -> bytes:
        """Return a safetensors file with the packed latents (float16) of a target and its references."""
        (latents,) = self._encode([target], self._target_size)
        return triplets.write_latents(latents, self._encode(references, self._reference_size))

    def _encode(self, files: list[bytes], size: tuple[int, int]) -> np.ndarray:
        import torch

        images = np.stack([crop_resize(decode(data), *size).transpose(2, 0, 1) for data in files])
        return np.asarray(self._cache.encode(self._vae, torch.from_numpy(images)).cpu().numpy())


def write_shard(work: MaterialiseWork, unit: int, encode: Encode | None = None) -> Columns:
    """Write shard ``unit`` unless it exists, with latents if ``encode`` is given; return its name and SHA-256."""
    shard = work.shards[unit]
    store, workspace = work.stage.dataset, work.stage.workspace
    table_key, done_key = (workspace.part(work.version.name, shard.name, suffix) for suffix in ("parquet", "json"))
    if not (
        store.exists(done_key)
        and store.exists(table_key)  # a user may remove a damaged table, as its error says
        and work.version.exists(shard.name)
    ):
        with scratch("shard") as folder:
            path = folder / "shard.tar"
            rows = _rows(work.stage, shard)
            hashes: list[dict[str, str]] = []
            samples = write_tar(path, _samples(work.stage, rows, encode, hashes))
            written = [_triplet(shard, *parts) for parts in zip(rows, samples, hashes, strict=True)]
            table = pa.Table.from_pylist(written, triplets.SCHEMA)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            work.version.upload(shard.name, path)
        write_table(store, table_key, table)
        store.write(done_key, canonical_json({"sha256": digest}).encode())
    digest = read_object(store, done_key, "sha256")["sha256"]
    return {"name": np.array([shard.name], object), "sha256": np.array([digest], object)}


@dataclass(frozen=True)
class _Row:
    """One triplet to write: the target's row of the plan, and one of its reference sets."""

    triplet_id: str
    target: dict[str, Any]
    references: list[dict[str, Any]]

    @property
    def prompt(self) -> str:
        return self.target["caption"] or f"a photo of a {self.target['class_name'] or 'subject'}"


def _rows(work: StageWork, shard: ShardPlan) -> list[_Row]:
    table = work.read_plan(shard.partition, "images", shard.span)
    subjects = work.read_plan(shard.partition, "subjects", shard.span)
    below = work.split_hashes(subjects, shard.span) < shard.split_cut
    mine = subjects.filter(pa.array(below if shard.split == "validation" else ~below))["subject"]
    table = table.filter(pc.is_in(table["subject"], value_set=mine.combine_chunks()))
    rows = []
    for _, of_subject in groupby(table.to_pylist(), key=itemgetter("subject")):
        photos = list(of_subject)
        for target in photos:
            for number, each in enumerate(zip(target["references"], target["similarities"], strict=True)):
                references = [photos[i] | {"similarity": similarity} for i, similarity in zip(*each, strict=True)]
                rows.append(_Row(f"{_target_id(work, target)}-{number}", target, references))
    return rows


def _target_id(work: StageWork, target: dict[str, Any]) -> str:
    """Return the first digits of the target's content hash, followed by its place if equal files are kept."""
    content = str(target["sha256"])[:20]
    if work.config.filters.has(ExactDuplicate):
        return content
    place = [target["shard"], target["offset"], *([target["key"]] if target["linked"] else [])]
    return f"{content}-{fingerprint(place)[:12]}"


def _samples(
    work: StageWork, rows: list[_Row], encode: Encode | None, hashes: list[dict[str, str]]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield samples, and add the SHA-256 of their members to ``hashes``. One subject is in memory at a time.

    The members are ref0, ref1, …, target, latents, json.
    """
    subject, images = None, dict[str, bytes]()
    for row in rows:
        if row.target["subject"] != subject:
            subject, images = row.target["subject"], {}
        for image in [*row.references, row.target]:
            if image["sha256"] not in images:
                images[image["sha256"]] = fit(work.read_image(image), work.config.shards)
        payload = {f"ref{i}.jpg": images[image["sha256"]] for i, image in enumerate(row.references)}
        payload["target.jpg"] = images[row.target["sha256"]]
        if encode is not None:
            payload[_LATENTS] = encode(payload["target.jpg"], list(payload.values())[:-1])
        payload["json"] = canonical_json(_metadata(row)).encode()
        hashes.append({name: hashlib.sha256(data).hexdigest() for name, data in payload.items()})
        yield row.triplet_id, payload


def fit(data: bytes, config: ShardsConfig) -> bytes:
    """Return the JPEG for a shard: the file's bytes if they fit, else the image scaled (or cropped) and encoded again.

    A JPEG that decodes only without its metadata is encoded again, since other readers of the shard could not open it.
    """
    if config.buckets is not None:
        image = decode(data)
        return encode_jpeg(crop_resize(image, *nearest_bucket(image, config.buckets)), config.jpeg_quality)
    fits = config.image_size is None or short_side(data) <= config.image_size
    if fits and data.startswith(_JPEG) and decodes_as_it_is(data):
        return data
    image = decode(data)
    small = image if config.image_size is None else fit_within(image, config.image_size)
    return encode_jpeg(small, config.jpeg_quality)


def nearest_bucket(image: np.ndarray, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the (height, width) whose aspect ratio is nearest to that of ``image`` [H, W, 3], by its logarithm."""
    aspect = np.log(image.shape[0] / image.shape[1])
    return min(buckets, key=lambda size: abs(float(np.log(size[0] / size[1]) - aspect)))


def _metadata(row: _Row) -> dict[str, Any]:
    target = row.target
    return {
        "subject": target["subject"],
        "class": target["class_name"],
        "prompt": row.prompt,
        "target": {name: target[name] for name in ("sha256", "licence", "source")},
        "references": [{name: image[name] for name in ("sha256", "similarity")} for image in row.references],
    }


def _triplet(shard: ShardPlan, row: _Row, sample: Sample, hashes: dict[str, str]) -> dict[str, Any]:
    references = [sample.members[f"ref{i}.jpg"] for i in range(len(row.references))]
    latents = sample.members.get(_LATENTS)
    return {
        "triplet_id": row.triplet_id,
        "split": shard.split,
        "subject": row.target["subject"],
        "class_name": row.target["class_name"],
        "prompt": row.prompt,
        "shard": shard.name,
        "target_offset": sample.members["target.jpg"].offset,
        "target_length": sample.members["target.jpg"].length,
        "reference_offsets": [member.offset for member in references],
        "reference_lengths": [member.length for member in references],
        "reference_similarities": [image["similarity"] for image in row.references],
        "target_image": row.target["sha256"],
        "reference_images": [image["sha256"] for image in row.references],
        "latents_offset": latents.offset if latents else None,
        "latents_length": latents.length if latents else None,
        "target_sha256": hashes["target.jpg"],
        "reference_sha256s": [hashes[f"ref{i}.jpg"] for i in range(len(references))],
        "latents_sha256": hashes.get(_LATENTS),
    }
