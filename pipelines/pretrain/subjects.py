"""The subjects of raw shards, with their photos in memory, divided into those to train on and those held out."""

import json
import logging
from dataclasses import dataclass

from tqdm import tqdm

from lookalike.config import fingerprint
from lookalike.data.images import EXTENSIONS, decode
from lookalike.data.passed_over import PassedOver
from lookalike.data.shards import BrokenTarError, iter_samples, open_object
from lookalike.errors import InputError, UnreachableError, describe
from lookalike.models.preprocess import check_image
from lookalike.models.presets import load_preset
from lookalike.pixels import crop_resize
from lookalike.storage import open_store
from pipelines.pretrain.augment import Pixels
from pipelines.pretrain.config import PretrainConfig

logger = logging.getLogger(__name__)

_MOST_LEFT_OUT = 0.1  # share of the samples that may be unreadable
_NAMED = 5  # samples in a message
_HELD_OUT = 16  # one subject of so many is kept for measuring


@dataclass(frozen=True)
class Subject:
    images: list[Pixels]
    captions: list[str]


def read_subjects(config: PretrainConfig) -> tuple[list[Subject], list[Subject]]:
    """Read all subjects of the shards, their images at twice the model's size: (train, held out)."""
    preset = load_preset(config.preset)
    store = open_store(config.raw)
    listing = list(store.list())
    shards = [info for info in listing if info.key.lower().endswith(".tar")]
    if len(shards) < len(listing):
        others = [info.key for info in listing if info not in shards]
        logger.warning("skipped: %d of %d objects are not .tar files, such as %s", len(others), len(listing), others[0])
    passed_over = PassedOver()
    subjects: dict[str, Subject] = {}
    left_out: list[str] = []
    total = 0
    for info in tqdm(shards, desc="read", unit="shard"):
        try:
            for sample, members in iter_samples(open_object(store, info), passed_over):
                total += 1
                try:
                    name, caption, image = _sample(members, 2 * preset.height, 2 * preset.width)
                except (UnreachableError, MemoryError):
                    raise
                except Exception as error:  # whatever a decoder raises for this sample's bytes
                    left_out.append(f"{info.key}/{sample.key} ({describe(error)[:200]})")
                    continue
                subject = subjects.setdefault(name, Subject([], []))
                subject.images.append(image)
                subject.captions.append(caption)
        except BrokenTarError as error:
            total += 1
            left_out.append(f"{info.key} ({error.what})")
    if passed_over.counts:
        logger.warning("skipped: members that belong to no sample: %s", dict(passed_over.counts))
    share, named = f"{len(left_out)} of {total} samples", "; ".join(left_out[:_NAMED])
    if left_out:
        logger.warning("%s are left out: %s", share, named)
    if len(left_out) > _MOST_LEFT_OUT * total:
        what = f"{share} cannot be read, at most {_MOST_LEFT_OUT:.0%} may: {named}"
        raise InputError(what, value=config.raw, fix="ingest the photos again")
    held_out = {name for name in subjects if int(fingerprint(name)[:8], 16) % _HELD_OUT == 0}
    train = [subjects[name] for name in sorted(subjects) if name not in held_out]
    if not train or not held_out:
        raise InputError(
            "too few subjects in the shards to hold some out", value=config.raw, fix="ingest 100 subjects or more"
        )
    return train, [subjects[name] for name in sorted(held_out)]


def _sample(members: dict[str, bytes], height: int, width: int) -> tuple[str, str, Pixels]:
    """Return subject, caption and image of a raw sample. Raises InputError if one of them is missing or damaged."""
    encoded = next((data for name, data in members.items() if name in EXTENSIONS), None)
    if encoded is None or "json" not in members:
        raise InputError("the raw sample has no image or no json", value=sorted(members), fix="ingest the photo again")
    meta = json.loads(members["json"])
    subject, caption = meta.get("subject"), meta.get("caption")
    if not isinstance(subject, str) or not isinstance(caption, str):
        raise InputError("subject or caption is not text", value=str(subject)[:80], fix="ingest the photo again")
    image = decode(encoded)
    check_image(image, "photo")
    return subject, caption, crop_resize(image, height, width)
