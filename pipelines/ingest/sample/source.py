"""The sample world as a source of raw shards, and the truth about it, which only tests and probes read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.config import canonical_json, fingerprint, to_dict
from lookalike.data.images import encode_png
from lookalike.data.shards import write_tar
from lookalike.storage import open_store
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.sample.defects import Shot, encode, plan_shots
from pipelines.ingest.sample.vocabulary import view_name
from pipelines.ingest.sample.world import Subject, body, subjects
from pipelines.ingest.source import Plan, shard_name

TRUTH = "_truth.json"
_SUBJECTS_PER_SHARD = 16  # a few seconds of rendering
_LICENCE = "zlib"  # licence of the meshes in pybullet_data
_WRONG_LICENCES = ("CC-BY-NC-4.0", "all rights reserved", "")


@dataclass(frozen=True)
class SampleShard:
    """A shard of some subjects, which are rendered when it is written."""

    name: str
    """Key below the raw prefix."""
    shots: tuple[Shot, ...]
    """The photos, in order."""
    size_px: int
    """Width and height of a photo, in pixels."""
    cut: str | None = None
    """Key of the sample in whose image the tar is truncated; None for a complete shard."""
    photos: str | None = None
    """URI that also gets the photos as plain files, if any."""

    @property
    def images(self) -> int:
        """Number of photos, including those after the truncation."""
        return len(self.shots)

    def write(self, path: Path) -> None:
        """Render the photos and write the tar to ``path``."""
        samples = write_tar(path, self._samples())
        for sample in samples:
            if sample.key == self.cut:
                image = sample.members["jpg"]
                with path.open("r+b") as file:
                    file.truncate(image.offset + image.length // 2)

    def _samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        from pipelines.ingest.sample.scene import render

        folder = open_store(self.photos) if self.photos else None
        for shot in self.shots:
            photo, owner = shot.photo, shot.photo.filed_under
            pixels, mask = render(body(photo.subject), photo.view, photo.place, self.size_px)
            data = encode(pixels, shot)
            if folder:
                folder.write(f"{owner.name}/{photo.key.rsplit('-', 1)[1]}.jpg", data)
            meta = {
                "subject": owner.name,
                "class": owner.shape,
                "caption": photo.caption,
                "source": "lookalike sample world",
                "licence": _licence(shot),
            }
            payload = {"jpg": data, "json": canonical_json(meta).encode()}
            if shot.defect is None:  # the mask would not match a photo with a defect
                payload["mask.png"] = encode_png(np.repeat(mask[..., None], 3, axis=2))
            yield photo.key, payload


def _licence(shot: Shot) -> str:
    return _WRONG_LICENCES[shot.variant % 3] if shot.defect == "wrong_licence" else _LICENCE


def plan_sample(config: IngestConfig) -> Plan:
    """Plan shards and ground truth of the sample world. Raises ConfigError: unknown shape, too few subjects."""
    world = config.sample
    things = _chosen(subjects(world), config)
    shots = plan_shots(world, things)
    # the truncated shard holds one subject, so that few photos are lost
    whole = things[:-1] if world.defects else things
    bytes_per_subject = world.views * world.size_px**2  # a JPEG has less than one byte per pixel
    per_shard = max(1, min(_SUBJECTS_PER_SHARD, (config.shard_mib << 20) // bytes_per_subject))
    groups = [whole[i : i + per_shard] for i in range(0, len(whole), per_shard)]
    shards = [
        SampleShard(
            shard_name(index),
            tuple(shot for thing in group for shot in shots[thing.name]),
            world.size_px,
            photos=config.photos,
        )
        for index, group in enumerate(groups)
    ]
    if world.defects:
        last = tuple(shots[things[-1].name])
        cut = last[len(last) // 2].photo.key
        shards.append(SampleShard(shard_name(len(shards)), last, world.size_px, cut=cut, photos=config.photos))
    truth = {"config": to_dict(world), **_truth(things, shards)}
    return Plan(shards, len(things), identity=fingerprint(truth), extras={TRUTH: truth})


def _chosen(things: list[Subject], config: IngestConfig) -> list[Subject]:
    kept = [thing for thing in things if thing.name not in config.exclude_subjects]
    return [thing for thing in kept if not config.subjects or thing.name in config.subjects]


def _truth(things: list[Subject], shards: list[SampleShard]) -> dict[str, Any]:
    photos: dict[str, Any] = {}
    cut: dict[str, list[str]] = {}
    for shard in shards:
        broken = False
        for shot in shard.shots:
            broken = broken or shot.photo.key == shard.cut
            if broken:
                cut.setdefault(shard.name, []).append(shot.photo.key)
            photos[shot.photo.key] = _truth_of(shot, shard.name, broken)
    return {
        "subjects": {thing.name: asdict(thing) for thing in things},
        "photos": photos,
        "truncated_shards": cut,  # keys that cannot be read, by shard
    }


def _truth_of(shot: Shot, shard: str, broken: bool) -> dict[str, Any]:
    photo = shot.photo
    return {
        "shard": shard,
        "subject": photo.filed_under.name,
        "shows": photo.subject.name,
        "defect": "truncated_shard" if broken else shot.defect,
        "original": shot.original,
        "place": photo.place,
        "view": asdict(photo.view) | {"name": view_name(photo.view.azimuth_deg, photo.view.elevation_deg)},
        "class": photo.subject.shape,
        "colours": photo.subject.colours,
        "pattern": photo.subject.pattern,
    }
