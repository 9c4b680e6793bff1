"""Write snapshots with damaged samples, which curation never writes."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.data.images import encode_jpeg, encode_png
from lookalike.data.triplet_files import write_latents
from lookalike.data.triplets import SCHEMA
from lookalike.storage import Store, open_store
from tests.drawn import draw
from tests.snapshots import write_pack, write_tables

TARGET, REFERENCE = "target.safetensors", "reference.safetensors"
Members = dict[str, bytes]
"""The four files of a triplet: ``target.jpg``, ``ref0.jpg`` and the latents of these."""
Row = dict[str, Any]
NOT_UTF8 = "not UTF-8"  # a prompt that is replaced by bytes that are not UTF-8


def flat(height: int, width: int) -> bytes:
    """A grey PNG of that size."""
    return encode_png(np.full((height, width, 3), 90, np.uint8))


def latents(value: float = 0.5, tokens: int = 64) -> bytes:
    """Latents of an image for ``mini``, all of one value."""
    return write_latents(np.full((tokens, 16), value))


def rotten(data: bytes) -> bytes:
    """The same bytes with zeros in the first half."""
    return bytes(len(data) // 2) + data[len(data) // 2 :]


BYTES: Mapping[str, Callable[[Members], Any]] = {
    "target is bit rot": lambda m: m.update({"target.jpg": rotten(m["target.jpg"])}),
    "target breaks off": lambda m: m.update({"target.jpg": m["target.jpg"][:-200]}),
    "target is no image": lambda m: m.update({"target.jpg": b"<html>404</html>"}),
    "target is empty": lambda m: m.update({"target.jpg": b""}),
    "target is 1x1": lambda m: m.update({"target.jpg": flat(1, 1)}),
    "reference is 1x1": lambda m: m.update({"ref0.jpg": flat(1, 1)}),
    "reference is small": lambda m: m.update({"ref0.jpg": flat(8, 300)}),
    "reference is 20000x40": lambda m: m.update({"ref0.jpg": flat(40, 20_000)}),
    "reference is bit rot": lambda m: m.update({"ref0.jpg": rotten(m["ref0.jpg"])}),
    "latents break off": lambda m: m.update({TARGET: m[TARGET][:-100]}),
    "latents are no safetensors": lambda m: m.update({TARGET: b"\xff" * 64}),
    "latents of another size": lambda m: m.update({TARGET: latents(tokens=16)}),
    "latents of a reference are of another size": lambda m: m.update({REFERENCE: latents(tokens=16)}),
    "latents are nan": lambda m: m.update({TARGET: latents(np.nan)}),
    "latents are infinite": lambda m: m.update({REFERENCE: latents(np.inf)}),
    "latents are huge": lambda m: m.update({TARGET: latents(6e4)}),
}
ROWS: Mapping[str, Callable[[Row], Any]] = {
    "offset behind the end": lambda r: r.update(target_offset=10**9),
    "offset beyond 64 bits of a file": lambda r: r.update(target_offset=2**63 - 1),
    "offset is negative": lambda r: r.update(target_offset=-1),
    "offset is null": lambda r: r.update(target_offset=None),
    "offset of a header": lambda r: r.update(target_offset=r["target_offset"] - 512),
    "length of petabytes": lambda r: r.update(target_length=2**50),
    "length is negative": lambda r: r.update(target_length=-5),
    "no reference list": lambda r: r.update(reference_offsets=None, reference_lengths=None),
    "an empty reference list": lambda r: r.update(reference_offsets=[], reference_lengths=[]),
    "a null reference": lambda r: r.update(reference_offsets=[None]),
    "lists of other lengths": lambda r: r.update(reference_lengths=[10, 10]),
    "fewer hashes than references": lambda r: r.update(reference_sha256s=[]),
    "hash is null": lambda r: r.update(target_sha256=None),
    "references of another sample": lambda r: r.update(reference_offsets=[3], reference_lengths=[100]),
    "no latents": lambda r: r.update(target_latents_offset=None),
    "no latents of the reference": lambda r: r.update(reference_latents_lengths=None),
    "prompt is null": lambda r: r.update(prompt=None),
    "prompt is not UTF-8": lambda r: r.update(prompt=NOT_UTF8),
    "subject is null": lambda r: r.update(subject=None),
    "id is null": lambda r: r.update(triplet_id=None),
    "id of a megabyte": lambda r: r.update(triplet_id="x" * 1_000_000),
    "shard is null": lambda r: r.update(target_shard=None),
    "shard of another snapshot": lambda r: r.update(target_shard=f"shards/{'0' * 64}.tar"),
    "shard outside the snapshot": lambda r: r.update(target_shard="../../passwd"),
    "shard of a reference is null": lambda r: r.update(reference_shards=[None]),
}
HARMLESS: Mapping[str, Callable[[Row], Any]] = {
    "placeholder": lambda r: r.update(prompt="a <IMG_CONTEXT> <img></img> mug<|im_end|><|im_start|>"),
    "other placeholders": lambda r: r.update(prompt="<image> <|vision_start|><|image_pad|><|endoftext|>"),
    "long caption": lambda r: r.update(prompt="red mug " * 200),
    "five megabytes": lambda r: r.update(prompt="red mug " * 600_000),
    "empty": lambda r: r.update(prompt=""),
    "blank": lambda r: r.update(prompt=" \n\t "),
    "NULs": lambda r: r.update(prompt="a\0mug\0"),
    "emoji": lambda r: r.update(prompt="a 🦊👩‍👩‍👧 mug"),
    "braces": lambda r: r.update(prompt="{prompt} {0} {images}"),
    "no class": lambda r: r.update(class_name=None),
    "similarity is nan": lambda r: r.update(reference_similarities=[float("nan")]),
    "no similarity": lambda r: r.update(reference_similarities=None),
}
POISONS = [*BYTES, *ROWS]


def write_snapshot(folder: Path, kinds: list[str | None], held_out: list[str | None] | None = None) -> str:
    """Write version 1 of a dataset with one triplet for each of ``kinds`` (None: a good one) and those held out.

    All images are in one pack, those of a triplet together. Returns the dataset's URI.
    """
    dataset = open_store(str(folder))
    version = folder / "v0001"
    splits = [*[("train", kind) for kind in kinds], *[("validation", kind) for kind in held_out or []]]
    samples, files = [], []
    for index, (_, kind) in enumerate(splits):
        members: Members = {
            "ref0.jpg": encode_jpeg(draw(index % 7, 0, 64)),
            "target.jpg": encode_jpeg(draw(index % 7, 1, 64)),
            TARGET: latents(),
            REFERENCE: latents(),
        }
        if kind in BYTES:
            BYTES[kind](members)
        samples.append((f"sample{index:03d}r", {"jpg": members["ref0.jpg"], REFERENCE: members[REFERENCE]}))
        samples.append((f"sample{index:03d}t", {"jpg": members["target.jpg"], TARGET: members[TARGET]}))
        files.append(members)
    pack, places = write_pack(dataset, samples)
    rows = []
    for index, (split, kind) in enumerate(splits):
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files[index].items()}
        reference, target = (place.members for place in places[2 * index : 2 * index + 2])
        row: Row = {
            **{"triplet_id": f"sample{index:03d}", "split": split, "subject": f"thing{index % 7}"},
            **{"class_name": "thing", "prompt": "a red thing", "target_image": "t", "reference_images": ["r"]},
            **{"target_shard": pack, "reference_shards": [pack], "reference_similarities": [0.5]},
            **{"target_sha256": hashes["target.jpg"], "reference_sha256s": [hashes["ref0.jpg"]]},
            **{"target_latents_sha256": hashes[TARGET], "reference_latents_sha256s": [hashes[REFERENCE]]},
        }
        for what in ("offset", "length"):
            row[f"target_{what}"] = getattr(target["jpg"], what)
            row[f"reference_{what}s"] = [getattr(reference["jpg"], what)]
            row[f"target_latents_{what}"] = getattr(target[TARGET], what)
            row[f"reference_latents_{what}s"] = [getattr(reference[REFERENCE], what)]
        change = {**ROWS, **HARMLESS}.get(kind or "")
        if change is not None:
            change(row)
        rows.append(row)
    table = pa.Table.from_pylist(rows, SCHEMA)
    prompts = [None if r["prompt"] is None else r["prompt"].encode() for r in rows]
    broken = pa.array([b"\xff\xfe\xfd" if p == NOT_UTF8.encode() else p for p in prompts], pa.binary())
    table = table.set_column(table.schema.get_field_index("prompt"), "prompt", broken.view(pa.string()))
    manifest = {"version": 1, "latents": None, "parent": None} | write_tables(open_store(str(version)), table)
    (version / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def pack_of(version: Store) -> str:
    """The key of the only pack of a dataset of :func:`write_snapshot`, below the dataset's prefix."""
    (info,) = version.parent.list("shards/")
    return info.key
