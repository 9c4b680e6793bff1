"""Write snapshots with damaged samples, which curation never writes."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.data.images import encode_jpeg, encode_png
from lookalike.data.shards import write_tar
from lookalike.data.triplets import SCHEMA, write_latents
from lookalike.storage import open_store
from tests.drawn import draw
from tests.snapshots import write_tables

SHARD = "shards/train-000000.tar"
Members = dict[str, bytes]
Row = dict[str, Any]
NOT_UTF8 = "not UTF-8"  # a prompt that is replaced by bytes that are not UTF-8


def flat(height: int, width: int) -> bytes:
    """A grey PNG of that size."""
    return encode_png(np.full((height, width, 3), 90, np.uint8))


def latents(target: float = 0.5, tokens: int = 64, references: int = 1) -> bytes:
    """Latents of ``mini``, all of one value."""
    return write_latents(np.full((tokens, 16), target), np.full((references, 64, 16), 0.5))


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
    "latents break off": lambda m: m.update({"latents": m["latents"][:-100]}),
    "latents are no safetensors": lambda m: m.update({"latents": b"\xff" * 64}),
    "latents of another size": lambda m: m.update({"latents": latents(tokens=16)}),
    "latents of more references": lambda m: m.update({"latents": latents(references=2)}),
    "latents are nan": lambda m: m.update({"latents": latents(np.nan)}),
    "latents are infinite": lambda m: m.update({"latents": latents(np.inf)}),
    "latents are huge": lambda m: m.update({"latents": latents(6e4)}),
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
    "references of another sample": lambda r: r.update(reference_offsets=[3], reference_lengths=[100]),
    "no latents": lambda r: r.update(latents_offset=None),
    "prompt is null": lambda r: r.update(prompt=None),
    "prompt is not UTF-8": lambda r: r.update(prompt=NOT_UTF8),
    "subject is null": lambda r: r.update(subject=None),
    "id is null": lambda r: r.update(triplet_id=None),
    "id of a megabyte": lambda r: r.update(triplet_id="x" * 1_000_000),
    "shard is null": lambda r: r.update(shard=None),
    "shard of another snapshot": lambda r: r.update(shard="shards/train-000099.tar"),
    "shard outside the snapshot": lambda r: r.update(shard="../../passwd"),
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


def write_snapshot(
    folder: Path, kinds: list[str | None], held_out: list[str | None] | None = None, *, hashes: bool = True
) -> str:
    """Write version 1 of a dataset with one triplet for each of ``kinds`` (None: a good one) and those held out.

    Rows have the hashes of their images, which those of earlier versions of this software lack. Returns its URI.
    """
    version = folder / "v0001"
    (version / "shards").mkdir(parents=True)
    splits = [*[("train", kind) for kind in kinds], *[("validation", kind) for kind in held_out or []]]
    samples, rows = [], []
    for index, (_, kind) in enumerate(splits):
        members: Members = {
            "ref0.jpg": encode_jpeg(draw(index % 7, 0, 64)),
            "target.jpg": encode_jpeg(draw(index % 7, 1, 64)),
            "latents": latents(),
        }
        if kind in BYTES:
            BYTES[kind](members)
        samples.append((f"sample{index:03d}", members))
    for index, sample in enumerate(write_tar(version / SHARD, samples)):
        split, kind = splits[index]
        row: Row = {
            **{"triplet_id": sample.key, "split": split, "subject": f"thing{index % 7}", "class_name": "thing"},
            **{"prompt": "a red thing", "shard": SHARD, "target_image": "t", "reference_images": ["r"]},
            **{f"target_{what}": getattr(sample.members["target.jpg"], what) for what in ("offset", "length")},
            **{f"reference_{what}s": [getattr(sample.members["ref0.jpg"], what)] for what in ("offset", "length")},
            **{f"latents_{what}": getattr(sample.members["latents"], what) for what in ("offset", "length")},
            "reference_similarities": [0.5],
        }
        if hashes:
            sha256s = {name: hashlib.sha256(data).hexdigest() for name, data in samples[index][1].items()}
            row |= {"target_sha256": sha256s["target.jpg"], "reference_sha256s": [sha256s["ref0.jpg"]]}
            row["latents_sha256"] = sha256s["latents"]
        change = {**ROWS, **HARMLESS}.get(kind or "")
        if change is not None:
            change(row)
        rows.append(row)
    table = pa.Table.from_pylist(rows, SCHEMA)
    prompts = [None if r["prompt"] is None else r["prompt"].encode() for r in rows]
    broken = pa.array([b"\xff\xfe\xfd" if p == NOT_UTF8.encode() else p for p in prompts], pa.binary())
    table = table.set_column(table.schema.get_field_index("prompt"), "prompt", broken.view(pa.string()))
    manifest = {"version": 1, "latents": None, "parent": None} | write_tables(open_store(str(version)), table)
    manifest["files"] |= {SHARD: hashlib.sha256((version / SHARD).read_bytes()).hexdigest()}
    (version / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)
