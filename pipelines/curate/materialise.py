"""Materialise: store the images of a range of subjects once, in a pack, and write its parts of the tables."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import local_bundle
from lookalike.config import canonical_json, fingerprint
from lookalike.data import triplet_files, triplets
from lookalike.data.cleaning import stripped
from lookalike.data.images import decode, decodes_as_it_is, encode_jpeg, fit_within, short_side
from lookalike.data.part_lists import Kind, read_lists
from lookalike.data.parts import PartedTable, write_part
from lookalike.data.shards import Sample, write_tar
from lookalike.documents import decoding
from lookalike.pixels import crop_resize
from lookalike.scratch import scratch
from lookalike.storage import read_object, size_of
from pipelines.actors import Columns
from pipelines.curate.config import ShardsConfig
from pipelines.curate.examples import Examples
from pipelines.curate.filters.exact_duplicate import ExactDuplicate
from pipelines.curate.materialised import LISTED, Done, MaterialiseWork, StoredBefore
from pipelines.curate.rows import IMAGES_SCHEMA, STORED_SCHEMA, with_hashes
from pipelines.curate.work import StageWork
from pipelines.curate.workspace import pack, part_of

_JPEG = b"\xff\xd8\xff"
_AT_ONCE, _BYTES_AT_ONCE = 64, 32 << 20  # images, and their bytes, that are read at once
_TARGET, _REFERENCE = "target.safetensors", "reference.safetensors"  # latents of an image
_PLACES = pa.schema([IMAGES_SCHEMA.field(name) for name in ("subject_hash", "sha256")] + list(STORED_SCHEMA))

Encode = Callable[[list[bytes]], list[dict[str, bytes]]]
"""A function from files of images to the files of the latents of each, by extension."""


class UnitWriter:
    """:func:`write_unit` in an actor that holds the VAE of a bundle, and encodes at the sizes of its model."""

    def __init__(self, work: MaterialiseWork) -> None:
        from lookalike.models.vae import LatentCache, load_vae

        config = work.stage.config
        folder = local_bundle(str(config.shards.latents))
        preset = read_preset(folder)
        self._work = work
        self._sizes = {
            _TARGET: (preset.height, preset.width),
            _REFERENCE: (preset.references.height, preset.references.width),
        }
        self._vae = load_vae(folder).to(config.actors.prepare())
        self._cache = LatentCache(capacity_mib=0)  # which makes latents independent of the images of a batch

    def __call__(self, unit: int) -> Columns:
        return write_unit(self._work, unit, self._latents)

    def _latents(self, files: list[bytes]) -> list[dict[str, bytes]]:
        """Return for each image a safetensors file of its latents (float16) at each size."""
        import torch

        images = [decode(data) for data in files]
        encoded: list[dict[str, bytes]] = [{} for _ in images]
        for extension, size in self._sizes.items():
            batch = np.stack([crop_resize(image, *size).transpose(2, 0, 1) for image in images])
            latents = self._cache.encode(self._vae, torch.from_numpy(batch)).cpu().numpy()
            for each, tokens in zip(encoded, latents, strict=True):
                each[extension] = triplet_files.write_latents(tokens)
        return encoded


def write_unit(work: MaterialiseWork, unit: int, encode: Encode | None = None) -> Columns:
    """Store the images of a unit, with latents if ``encode`` is given, and write its parts, unless that is done.

    The record of the unit (:class:`Done`) is written last. A part or pack that was removed is made again.
    """
    if not _is_done(work, unit):
        _write_unit(work, unit, encode)
    return {"unit": np.array([unit])}


def _is_done(work: MaterialiseWork, unit: int) -> bool:
    dataset = work.stage.dataset
    if not dataset.exists(work.stage.workspace.materialised(work.name, unit)):
        return False
    done = Done.of(work, unit)
    parts = all(work.version.exists(part.name) for part in done.parts.values())
    return parts and all(dataset.exists(key) for key in done.packs)


def _write_unit(work: MaterialiseWork, unit: int, encode: Encode | None) -> None:
    stage, workspace = work.stage, work.stage.workspace
    partition, number = work.layout.partition_of(unit)
    span = _span(stage, partition, number)
    rows = stage.read_plan(partition, "images", span)
    targets = _targets(rows)
    wanted = _wanted(rows, targets)
    places, packs = _stored_before(work, span, wanted)
    reused = len(places)
    new = [image for content, image in wanted.items() if content not in places]
    if new:
        written, size = _write_pack(stage, new, encode)
        places |= written
        packs[next(iter(written.values()))["stored_shard"]] = size
    used = [places[content] for content in wanted]
    lengths = [place["stored_length"] for place in used]
    stored = sum(places[image["sha256"]]["stored_length"] for image in new)
    tables, examples = _triplets(work, partition, span, targets, places), Examples()
    for table in tables.values():
        examples.add(table)
    stage.dataset.delete(workspace.listed(work.name, unit // LISTED))  # it lists what is written now
    done = Done(
        parts={
            kind: write_part(work.version, part_of(kind, unit), table)
            for kind, table in {"images": _images(rows, places), **tables}.items()
            if len(table)
        },
        packs={key: [sum(place["stored_shard"] == key for place in used), size] for key, size in sorted(packs.items())},
        images_stored=len(new),
        bytes_stored=stored,
        images_reused=reused,
        bytes_reused=sum(lengths) - stored,
        examples=examples.chosen,
    )
    stage.dataset.write(workspace.materialised(work.name, unit), canonical_json(asdict(done)).encode())


def _span(work: StageWork, partition: int, number: int) -> tuple[int, int]:
    """The half-open range of subject hashes of unit ``number`` of a partition."""
    key = work.workspace.layout(partition)
    with decoding("a layout", work.dataset.uri_of(key)):
        low, high = read_object(work.dataset, key, "bounds")["bounds"][number : number + 2]
        return int(low), int(high)


def _targets(rows: pa.Table) -> list[dict[str, Any]]:
    """The rows of the plan that are targets, with ``reference_sets``: the content and similarity of each reference."""
    contents = rows["sha256"].to_pylist()
    subjects = rows.select(["subject_hash", "subject"]).to_pydict()
    places = list(zip(*subjects.values(), strict=True))
    first: dict[tuple[int, str], int] = {}
    for number, place in enumerate(places):
        first.setdefault(place, number)
    chosen = np.flatnonzero(pc.list_value_length(rows["references"]).to_numpy()).tolist()
    targets = []
    for number, target in zip(chosen, rows.take(pa.array(chosen, pa.int64())).to_pylist(), strict=True):
        begin = first[places[number]]
        sets = zip(target.pop("references"), target.pop("similarities"), strict=True)
        target["reference_sets"] = [
            [{"sha256": contents[begin + i], "similarity": similarity} for i, similarity in zip(*each, strict=True)]
            for each in sets
        ]
        targets.append(target)
    return targets


def _wanted(rows: pa.Table, targets: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The images of the triplets, by content and in the order of their rows, with their place in the raw shards."""
    contents = {target["sha256"] for target in targets}
    contents |= {image["sha256"] for target in targets for images in target["reference_sets"] for image in images}
    kept = rows.filter(pc.is_null(rows["drop_reason"])).select(["sha256", "shard", "unpacked", "offset", "length"])
    kept = kept.filter(pc.is_in(kept["sha256"], value_set=pa.array(sorted(contents), pa.string())))
    wanted: dict[str, dict[str, Any]] = {}
    for image in kept.to_pylist():
        wanted.setdefault(image["sha256"], image)
    assert wanted.keys() == contents, "a reference is not a kept image of its subject"
    return wanted


def _stored_before(
    work: MaterialiseWork, span: tuple[int, int], wanted: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """The places of the wanted images that the parent has stored, by content, and the bytes of their packs."""
    if work.before is None:
        return {}, {}
    rows = _parent_rows(work.before, span)
    rows = rows.filter(pc.is_in(rows["sha256"], value_set=pa.array(list(wanted), pa.string())))
    packs = {key: size_of(work.stage.dataset, key) for key in rows["stored_shard"].unique().drop_null().to_pylist()}
    packs = {key: size for key, size in packs.items() if key not in work.tainted}  # 0 bytes if it was removed
    places = {
        row["sha256"]: {name: row[name] for name in STORED_SCHEMA.names}
        for row in rows.to_pylist()
        if row["stored_offset"] is not None
        and row["stored_offset"] + row["stored_length"] <= packs.get(row["stored_shard"], 0)
    }
    used = {place["stored_shard"] for place in places.values()}
    return places, {key: size for key, size in packs.items() if key in used}


def _parent_rows(before: StoredBefore, span: tuple[int, int]) -> pa.Table:
    """Content and place of the parent's images in a range; only the lists and row groups of the range are read."""
    names = list(before.files)
    first = max(0, int(np.searchsorted(before.first_hashes, span[0], side="right")) - 1)
    stop = int(np.searchsorted(before.first_hashes, span[1], side="left"))
    lists = read_lists(before.version, names[first:stop], {"files": before.files})
    return PartedTable(before.version, lists, _PLACES).read_span(span)


def _write_pack(
    work: StageWork, images: list[dict[str, Any]], encode: Encode | None
) -> tuple[dict[str, dict[str, Any]], int]:
    """Write a pack with these images; return the place of each by its content, and the bytes of the pack."""
    hashes: list[dict[str, str]] = []
    with scratch("pack") as folder:
        path = folder / "pack.tar"
        samples = write_tar(path, _samples(work, images, encode, hashes))
        with path.open("rb") as file:
            key = pack(hashlib.file_digest(file, "sha256").hexdigest())
        size = path.stat().st_size
        if size_of(work.dataset, key) != size:
            work.dataset.upload(key, path)
    return {sample.key: _place(key, sample, sha256s) for sample, sha256s in zip(samples, hashes, strict=True)}, size


def _samples(
    work: StageWork, images: list[dict[str, Any]], encode: Encode | None, hashes: list[dict[str, str]]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield a sample for each image, and add the SHA-256 of its files to ``hashes``. Some are in memory at a time."""
    left = iter(images)
    while some := list(_bounded(left)):
        files = [fit(data, work.config.shards) for data in work.read_images(some)]
        latents = [{}] * len(files) if encode is None else encode(files)
        for image, data, encoded in zip(some, files, latents, strict=True):
            payload = {"jpg": data, **encoded}
            hashes.append({name: hashlib.sha256(content).hexdigest() for name, content in payload.items()})
            yield image["sha256"], payload


def _bounded(images: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the next images, up to one that completes the bytes or the number that are read at once."""
    size = 0
    for image in islice(images, _AT_ONCE):
        yield image
        size += image["length"]
        if size >= _BYTES_AT_ONCE:
            return


def _place(key: str, sample: Sample, sha256s: dict[str, str]) -> dict[str, Any]:
    place: dict[str, Any] = {"stored_shard": key}
    for prefix, extension in (("stored", "jpg"), ("target_latents", _TARGET), ("reference_latents", _REFERENCE)):
        member = sample.members.get(extension)
        place[f"{prefix}_offset"] = member.offset if member else None
        place[f"{prefix}_length"] = member.length if member else None
        place[f"{prefix}_sha256"] = sha256s.get(extension)
    return place


def _images(rows: pa.Table, places: dict[str, dict[str, Any]]) -> pa.Table:
    """The unit's part of the image table: every image, and where those of triplets are stored."""
    rows = rows.select([name for name in IMAGES_SCHEMA.names if name not in STORED_SCHEMA.names])
    kept = zip(rows["sha256"].to_pylist(), rows["drop_reason"].to_pylist(), strict=True)
    of_row = [places.get(content, {}) if reason is None else {} for content, reason in kept]
    for field in STORED_SCHEMA:
        rows = rows.append_column(field, pa.array([place.get(field.name) for place in of_row], field.type))
    return rows.cast(IMAGES_SCHEMA)


def _triplets(
    work: MaterialiseWork,
    partition: int,
    span: tuple[int, int],
    targets: list[dict[str, Any]],
    places: dict[str, dict[str, Any]],
) -> dict[Kind, pa.Table]:
    """The unit's triplets of each split (:data:`lookalike.data.triplets.SCHEMA`)."""
    subjects = work.stage.read_plan(partition, "subjects", span)
    below = work.stage.split_hashes(subjects, span) < work.layout.split_cut
    held_out = dict(zip(subjects["subject"].to_pylist(), below.tolist(), strict=True))
    rows: dict[triplets.Split, list[dict[str, Any]]] = {split: [] for split in triplets.SPLITS}
    for target in targets:
        split = triplets.SPLITS[held_out[target["subject"]]]
        identity = _target_id(work.stage, target)
        for number, references in enumerate(target["reference_sets"]):
            rows[split].append(_triplet(f"{identity}-{number}", split, target, references, places))
    tables = {split: pa.Table.from_pylist(of_split, triplets.SCHEMA) for split, of_split in rows.items()}
    return {split: with_hashes(table) for split, table in tables.items()}


def _target_id(work: StageWork, target: dict[str, Any]) -> str:
    """Return the first digits of the target's content hash, followed by its place if equal files are kept."""
    content = str(target["sha256"])[:20]
    if work.config.filters.has(ExactDuplicate):
        return content
    place = [target["shard"], target["offset"], *([target["key"]] if target["linked"] else [])]
    return f"{content}-{fingerprint(place)[:12]}"


def _triplet(
    triplet_id: str,
    split: triplets.Split,
    target: dict[str, Any],
    references: Sequence[dict[str, Any]],
    places: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    place = places[target["sha256"]]
    given = [places[image["sha256"]] for image in references]
    row = {
        "triplet_id": triplet_id,
        "split": split,
        "subject": target["subject"],
        "class_name": target["class_name"],
        "prompt": target["caption"] or f"a photo of a {target['class_name'] or 'subject'}",
        "target_shard": place["stored_shard"],
        "reference_shards": [each["stored_shard"] for each in given],
        "reference_similarities": [image["similarity"] for image in references],
        "target_image": target["sha256"],
        "reference_images": [image["sha256"] for image in references],
    }
    for what in ("offset", "length", "sha256"):
        row[f"target_{what}"] = place[f"stored_{what}"]
        row[f"reference_{what}s"] = [each[f"stored_{what}"] for each in given]
        row[f"target_latents_{what}"] = place[f"target_latents_{what}"]
        if place["target_latents_offset"] is not None:
            row[f"reference_latents_{what}s"] = [each[f"reference_latents_{what}"] for each in given]
    return row


def fit(data: bytes, config: ShardsConfig) -> bytes:
    """Return the JPEG for a pack, without metadata: the file's pixels byte for byte if they fit and are upright, else
    the image scaled (or cropped) and encoded again.

    A JPEG that decodes only without its metadata is encoded again: its pixels may be damaged, too.
    """
    if config.buckets is not None:
        image = decode(data)
        return encode_jpeg(crop_resize(image, *nearest_bucket(image, config.buckets)), config.jpeg_quality)
    fits = config.image_size is None or short_side(data) <= config.image_size
    bare = stripped(data) if fits and data.startswith(_JPEG) else None
    if bare is not None and (bare == data or decodes_as_it_is(data)):
        return bare
    image = decode(data)
    small = image if config.image_size is None else fit_within(image, config.image_size)
    return encode_jpeg(small, config.jpeg_quality)


def nearest_bucket(image: np.ndarray, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the (height, width) whose aspect ratio is nearest to that of ``image`` [H, W, 3], by its logarithm."""
    aspect = np.log(image.shape[0] / image.shape[1])
    return min(buckets, key=lambda size: abs(float(np.log(size[0] / size[1]) - aspect)))
