"""The sample world as a source of raw shards, and its ground truth, which only tests and probes read."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.config import canonical_json, fingerprint, to_dict
from lookalike.data.images import encode_png
from lookalike.data.shards import write_tar
from lookalike.errors import ConfigError
from lookalike.storage import Store, open_store
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.sample.defects import encode, plan_photos
from pipelines.ingest.sample.scene import render
from pipelines.ingest.sample.vocabulary import view_name
from pipelines.ingest.sample.world import Photo, body, subjects
from pipelines.ingest.source import Plan, Shard, shard_name

TRUTH = "_truth.json"
_SUBJECTS_PER_SHARD = 16  # a few seconds of rendering
_LICENCE = "zlib"  # licence of the meshes in pybullet_data
_WRONG_LICENCES = ("CC-BY-NC-4.0", "all rights reserved", "")


def plan_sample(config: IngestConfig) -> Plan:
    """Plan the sample world. Raises ConfigError for an unknown shape or subject, or under two subjects with defects."""
    world = config.sample
    things = [thing for thing in subjects(world) if thing.name not in config.exclude_subjects]
    if config.subjects:
        if unknown := sorted(set(config.subjects) - {thing.name for thing in things}):
            names = [thing.name for thing in things]
            raise ConfigError("subjects names none of the sample world", value=unknown, fix=f"use some of {names[:10]}")
        things = [thing for thing in things if thing.name in config.subjects]
    photos = plan_photos(world, things)
    # the truncated shard holds one subject, so that few photos are lost
    whole = things[:-1] if world.defects else things
    bytes_per_subject = world.views * world.size_px**2  # a JPEG has less than one byte per pixel
    per_shard = max(1, min(_SUBJECTS_PER_SHARD, (config.shard_mib << 20) // bytes_per_subject))
    parts = [whole[i : i + per_shard] for i in range(0, len(whole), per_shard)]
    groups = [[photo for thing in part for photo in photos[thing.name]] for part in parts]
    lost: list[str] = []  # keys that cannot be read
    if world.defects:
        last = photos[things[-1].name]
        lost = [photo.key for photo in last[len(last) // 2 :]]
        groups.append(last)
    shards: list[Shard] = []
    truths: dict[str, Any] = {}
    for index, group in enumerate(groups):
        name = shard_name(index)
        cut = lost[0] if lost and index == len(groups) - 1 else None
        write = partial(_write_shard, photos=group, size_px=world.size_px, cut=cut, folder_uri=config.photos)
        shards.append(Shard(name, len(group), write))
        truths |= {photo.key: _truth_of(photo, name, photo.key in lost) for photo in group}
    truth = {
        "config": to_dict(world),
        "subjects": {thing.name: asdict(thing) for thing in things},
        "photos": truths,
        "truncated_shards": {shards[-1].name: lost} if lost else {},
    }
    return Plan(shards, len(things), identity=fingerprint(truth), extras={TRUTH: truth})


def _write_shard(path: Path, photos: list[Photo], size_px: int, cut: str | None, folder_uri: str | None) -> None:
    """Render photos into a tar, and also as plain files below ``folder_uri``.

    The tar is truncated in the image of the sample ``cut``.
    """
    folder = open_store(folder_uri) if folder_uri else None
    for sample in write_tar(path, (_sample(photo, size_px, folder) for photo in photos)):
        if sample.key == cut:
            image = sample.members["jpg"]
            with path.open("r+b") as file:
                file.truncate(image.offset + image.length // 2)


def _sample(photo: Photo, size_px: int, folder: Store | None) -> tuple[str, dict[str, bytes]]:
    owner = photo.filed_under
    pixels, mask = render(body(photo.subject), photo.view, photo.place, size_px)
    data = encode(pixels, photo.defect, photo.variant)
    if folder:
        folder.write(f"{owner.name}/{photo.key.rsplit('-', 1)[1]}.jpg", data)
    meta = {
        "subject": owner.name,
        "class": owner.shape,
        "caption": photo.caption,
        "source": "lookalike sample world",
        "licence": _WRONG_LICENCES[photo.variant % 3] if photo.defect == "wrong_licence" else _LICENCE,
    }
    payload = {"jpg": data, "json": canonical_json(meta).encode()}
    if photo.defect is None:  # the mask would not match a photo with a defect
        payload["mask.png"] = encode_png(np.repeat(mask[..., None], 3, axis=2))
    return photo.key, payload


def _truth_of(photo: Photo, shard: str, lost: bool) -> dict[str, Any]:
    return {
        "shard": shard,
        "subject": photo.filed_under.name,
        "shows": photo.subject.name,
        "defect": "truncated_shard" if lost else photo.defect,
        "original": photo.original,
        "place": photo.place,
        "view": asdict(photo.view) | {"name": view_name(photo.view.azimuth_deg, photo.view.elevation_deg)},
        "class": photo.subject.shape,
        "colours": photo.subject.colours,
        "pattern": photo.subject.pattern,
    }
