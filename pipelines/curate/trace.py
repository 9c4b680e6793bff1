"""Lineage: find the raw images of a triplet, and the triplets that use an image."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.data import triplets
from lookalike.data.parts import Kind
from lookalike.documents import decoding
from lookalike.errors import ConfigError, InputError
from lookalike.storage import Store, list_versions, open_store, read_manifest, version_store
from lookalike.values import configuration
from pipelines.curate.tables import open_files

_TRIPLET_ID = re.compile(r"[0-9a-f]{20}(-[0-9a-f]{12})?-\d+")
_CONTENT = re.compile(r"[0-9a-f]{8,64}")
_SHOWN = 12  # maximum triplets of an image that are shown for a snapshot


@configuration()
class TraceConfig:
    """Settings of a search for the raw images of a triplet, or for the triplets of an image."""

    id: str
    """Id of a triplet, or the SHA-256 of an image's bytes (its first 8 digits or more)."""
    dataset: str
    """URI of the prefix of the snapshots."""
    version: int | None = None
    """Version to search; null: all, the newest first."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not (_TRIPLET_ID.fullmatch(self.id) or _CONTENT.fullmatch(self.id)):
            raise ConfigError(
                "id is neither a triplet's id nor a content hash",
                value=self.id,
                fix="copy one from a version's triplets/ or images/; a hash needs 8 hexadecimal digits or more",
            )


def trace(config: TraceConfig) -> list[dict[str, Any]]:
    """Return what each snapshot contains about a triplet or an image, the newest snapshot first.

    For a triplet: ``version, triplet_id, split, subject, prompt, shard, images`` with the role and the place in the raw
    shards of each image. For an image: ``version, image`` with its place and drop reason, ``triplets`` (how many use
    it) and ``examples`` of them. Raises InputError if no snapshot exists or contains it.
    """
    dataset = open_store(config.dataset)
    versions = [config.version] if config.version is not None else list_versions(dataset)[::-1]
    if not versions:
        raise InputError("the dataset has no complete snapshot", value=dataset.uri, fix="run jobs/curate.py run first")
    of_one = _triplet if _TRIPLET_ID.fullmatch(config.id) else _image
    entries: list[dict[str, Any]] = []
    for version in versions:
        where = version_store(dataset, version).uri
        with decoding("a whole snapshot", where, fix="restore it, or use another --version"):
            entries += of_one(dataset, version, config.id)
    if not entries:
        names = ", ".join(f"v{version:04d}" for version in versions)
        what = f"no triplet or image with this id in {names}"
        raise InputError(what, value=config.id, fix="correct the id or --dataset")
    return entries


def render_trace(entries: list[dict[str, Any]]) -> str:
    """Return the entries as text for a terminal."""
    lines = []
    for entry in entries:
        version = f"v{entry['version']:04d}"
        if "triplet_id" in entry:
            lines.append(f"{version}  triplet {entry['triplet_id']} ({entry['split']}, {entry['subject']})")
            lines.append(f"       in {entry['shard']}: {entry['prompt']!r}")
            lines += [f"       {image['role']:<13}{_place(image)}" for image in entry["images"]]
            continue
        image = entry["image"]
        fate = f"dropped: {image['drop_reason']}" if image["drop_reason"] else f"in {entry['triplets']} triplets"
        lines.append(f"{version}  {_place(image)}  {fate}")
        lines += [f"       {example['role']:<13}of {example['triplet_id']}" for example in entry["examples"]]
    return "\n".join(lines)


def _place(image: dict[str, Any]) -> str:
    inside = "" if image["raw"].lower().endswith(".tar") else " of the tar inside"
    place = f"{image['raw']} at {image['offset']} + {image['length']}{inside}"
    return f"{image['sha256'][:12]}  {place}  key {image['key']}"


def _triplet(dataset: Store, version: int, triplet_id: str) -> list[dict[str, Any]]:
    entries = []
    of_id = _triplet_rows(dataset, version, ["triplet_id"], lambda t: pc.equal(t["triplet_id"], triplet_id))
    for row in of_id:
        roles = {"target": row["target_image"]}
        roles |= {f"reference {i}": content for i, content in enumerate(row["reference_images"])}
        rows = _images(dataset, version, list(roles.values()))
        kept = {image["sha256"]: image for image in rows if not image["drop_reason"]}
        images = [{"role": role} | kept[content] for role, content in roles.items()]
        shown = {name: row[name] for name in ("triplet_id", "split", "subject", "prompt", "shard")}
        entries.append(shown | {"version": version, "images": images})
    return entries


def _image(dataset: Store, version: int, content: str) -> list[dict[str, Any]]:
    images = _images(dataset, version, [content])
    used: dict[str, list[dict[str, str]]] = {}
    if any(not image["drop_reason"] for image in images):
        columns = ["target_image", "reference_images"]
        for row in _triplet_rows(dataset, version, columns, lambda t: _uses(t, content)):
            members = [("target", row["target_image"]), *(("reference", image) for image in row["reference_images"])]
            for role, image in members:
                if image.startswith(content):
                    used.setdefault(image, []).append({"role": role, "triplet_id": row["triplet_id"]})
    of_kept = [[] if image["drop_reason"] else used.get(image["sha256"], []) for image in images]
    return [
        {"version": version, "image": image, "triplets": len(uses), "examples": uses[:_SHOWN]}
        for image, uses in zip(images, of_kept, strict=True)
    ]


def _uses(table: pa.Table, content: str) -> np.ndarray:
    """Return which triplets use an image whose hash begins with ``content``: bool [N]."""
    mask = np.array(pc.starts_with(table["target_image"], content))
    parents = np.asarray(pc.list_parent_indices(table["reference_images"]))
    mask[parents[np.asarray(pc.starts_with(pc.list_flatten(table["reference_images"]), content))]] = True
    return mask


def _images(dataset: Store, version: int, contents: list[str]) -> list[dict[str, Any]]:
    """Return rows of the image table whose hash begins with one of ``contents``, with the URI of their raw shard."""
    raw = open_store(read_manifest(dataset, version)["inputs"]["raw"])

    def begins(table: pa.Table) -> np.ndarray:
        column = pc.fill_null(table["sha256"], "")
        return np.asarray(np.logical_or.reduce([pc.starts_with(column, content) for content in contents]))

    names = ("sha256", "key", "offset", "length", "subject", "licence", "source", "drop_reason")
    return [
        {name: row[name] for name in names} | {"raw": raw.uri_of(row["shard"])}
        for row in _rows(dataset, version, "images", ["sha256"], begins)
    ]


def _triplet_rows(
    dataset: Store, version: int, columns: list[str], matches: Callable[[pa.Table], Any]
) -> Iterator[dict[str, Any]]:
    """Yield the matching triplets of both splits."""
    seen = set()
    for split in triplets.SPLITS:
        for row in _rows(dataset, version, split, columns, matches):
            if row["triplet_id"] not in seen:  # one table of format 1 has both splits
                seen.add(row["triplet_id"])
                yield row


def _rows(
    dataset: Store, version: int, kind: Kind, columns: list[str], matches: Callable[[pa.Table], Any]
) -> Iterator[dict[str, Any]]:
    """Yield the matching rows of a table of a snapshot; ``matches`` returns bool [N] for N rows of ``columns``.

    One row group is in memory at a time.
    """
    for file in open_files(version_store(dataset, version), kind):
        for group in range(file.num_row_groups):
            mask = np.asarray(matches(file.read_row_group(group, columns=columns)))
            if mask.any():
                yield from file.read_row_group(group).filter(pa.array(mask)).to_pylist()
