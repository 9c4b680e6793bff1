"""Targets of the fuzzer: for each kind of file, real seeds and the function that reads it.

A target returns or raises a LookalikeError; any other exception is a finding.
"""

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lookalike import config as configs
from lookalike.bundles.build import materialise
from lookalike.bundles.manifest import read_manifest as read_bundle_manifest
from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import fetch_bundle
from lookalike.data import images, shards, text, triplets
from lookalike.data.part_lists import FORMAT, GROUP_ROWS, Part, write_list
from lookalike.data.parts import open_table, write_part
from lookalike.data.shuffle import Shuffle
from lookalike.diffusion.loading import load_pipeline
from lookalike.errors import InputError
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.scores import Scores, Source
from lookalike.models.components import token_shape
from lookalike.models.presets import load_preset
from lookalike.registry.promotion_log import Promotion, PromotionLog
from lookalike.storage import open_store, read_manifest
from lookalike.storage.claim import claim, read_claim, read_result, write_result
from lookalike.storage.lease import hold
from lookalike.tracking import events
from lookalike.tracking.base import Tracker
from pipelines import report
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.index import IndexWork, index_shard
from pipelines.curate.inputs import Inputs
from pipelines.curate.raw import list_raw
from pipelines.curate.tables import read_footer, read_table
from pipelines.train.tracked import _read as read_tracked
from tests.drawn import Photo, draw, jpeg

Target = Callable[[bytes, Path], object]
CONFIG = {"seed": 1, "out": "file:///x", "stages": [{"name": "a", "steps": 3}], "inputs": {"bundle": "b" * 64}}
RESULT = {"bundle_uri": "file:///x/bundle", "bundle_sha256": "b" * 64, "steps": 3, "tracking_run": "r", "stages": []}
METRICS = b'{"step": 0, "stage": "a", "loss": 0.5, "images_per_second": 2.0, "data_wait_share": 0.1}\n' * 3
CHECK = {"name": "loss_gap.low", "value": 0.2, "threshold": 0.0, "passed": True, "why": "above"}


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_seeds() -> list[bytes]:
    """One small photo in each supported format and mode."""
    picture = Image.fromarray(draw(0, 0, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [
        *(_encoded(picture, "JPEG", quality=80), _encoded(picture, "JPEG", progressive=True, exif=exif)),
        *(_encoded(picture.convert("CMYK"), "JPEG"), _encoded(picture.convert("L"), "JPEG")),
        *(_encoded(picture, "PNG"), _encoded(picture.convert("P"), "PNG"), _encoded(picture.convert("RGBA"), "PNG")),
        *(_encoded(picture, "WEBP"), _encoded(picture, "WEBP", lossless=True), _encoded(picture, "TIFF")),
        *(_encoded(picture, "GIF"), _encoded(picture, "BMP"), _encoded(picture, "AVIF")),
        _encoded(Image.fromarray(np.full((16, 16), 40_000, np.uint16)), "PNG"),
    ]
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        seeds.append(_encoded(picture, "HEIF"))
    except (ImportError, KeyError, RuntimeError):
        pass
    return seeds


def read_image(data: bytes, folder: Path) -> None:
    """Decode by every function that reads pixels."""
    for door in (images.decode, lambda data: images.decode_noted(data, 64), images.short_side):
        try:
            door(data)
        except images.ImageError:
            continue
    images.decodes_as_it_is(data)


def tar_seeds() -> list[bytes]:
    """Raw shards: written by this library, GNU and pax with long names, links, compressed ones."""
    photos = [Photo(f"thing-{view}", jpeg(draw(0, view, 48)), "thing") for view in range(3)]
    samples = [item.sample() for item in photos]
    buffer = io.BytesIO()
    shards.write_tar(buffer, samples)
    seeds = [buffer.getvalue()]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
            for key, members in samples[:2]:
                for name, data in members.items():
                    info = tarfile.TarInfo(f"{'n' * 120}/{key}é.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, f"{'n' * 120}/{samples[0][0]}é.jpg"
            tar.addfile(link)
        seeds.append(buffer.getvalue())
    for compression in ("gz", "bz2", "xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
            info = tarfile.TarInfo("a.json")
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
        seeds.append(buffer.getvalue())
    return seeds


def read_tar(data: bytes, folder: Path) -> None:
    """Index one raw shard as curation does."""
    raw, dataset = folder / "raw", folder / "dataset"
    for place in (raw, dataset):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    (raw / "shard.tar").write_bytes(data)
    filters = FiltersConfig(skip=["near_duplicate", "off_subject"], no_pair=NoPair(min_similarity=0.0))
    config = CurateConfig(raw=str(raw), dataset=str(dataset), embedder="none", filters=filters)
    inputs = Inputs.of(config, list_raw(config.raw, open_store(config.dataset)).shards)
    for unit in tuple(inputs.units):
        work = IndexWork(config, inputs, open_store(config.raw), open_store(config.dataset), (unit,))
        columns = index_shard(work, 0)
        if "Error: " in (said := str(columns["error"][0])):  # of a library, not ours: it ended the whole shard
            raise AssertionError(said)


def json_seeds() -> list[bytes]:
    """Labels as datasets have them."""
    return [
        json.dumps(
            {"subject": "mug", "class": "mug", "caption": "a mug", "licence": "CC0-1.0", "source": "x"}
        ).encode(),
        json.dumps({"subject": ["a", "b"], "caption": {"en": "a"}, "url": "http://x", "n": 1.5, "t": None}).encode(),
    ]


def read_labels(data: bytes, folder: Path) -> None:
    """Read JSON beside a photo."""
    value = text.read_json(data, "x.json")
    for item in value.values() if isinstance(value, dict) else [value]:
        for options in ({}, {"many": True}, {"identity": True}, {"prose": True}):
            text.read_label(item, **options)
    if isinstance(value, dict):
        text.read_licence(value)


def parquet_seeds() -> list[bytes]:
    """A triplet table, and a table with notes."""
    row: dict[str, Any] = dict.fromkeys(triplets.SCHEMA.names)
    for field in triplets.SCHEMA:
        kinds = {"string": "x", "int64": 1, "int32": 1, "double": 0.5, "float": 0.5, "bool": True}
        row[field.name] = kinds.get(str(field.type), ["x"] if "string" in str(field.type) else [1])
    seeds = []
    for table in (
        pa.Table.from_pylist([row] * 5, triplets.SCHEMA),
        pa.table({"subject_hash": [1, 2], "n": ["a", "b"]}),
    ):
        for options in ({}, {"compression": "zstd", "row_group_size": 2}, {"use_dictionary": False}):
            buffer = io.BytesIO()
            pq.write_table(table, buffer, **options)
            seeds.append(buffer.getvalue())
    return seeds


def read_parquet(data: bytes, folder: Path) -> None:
    """Read the triplets of a snapshot, and tables of curation."""
    store = open_store(str(folder))
    store.write("triplets/train-000000.parquet", data)
    info = next(iter(store.list("triplets/train-000000.parquet")))
    part = Part(info.key, 5, len(data), hashlib.sha256(data).hexdigest(), None, None, (), (), "00" * 32)
    written = write_list(store, "train", 0, [part])
    tables = {"train": {"rows": 5, "lists": [written["name"]]}, "validation": {"rows": 0, "lists": []}}
    store.write("manifest.json", json.dumps({"format": FORMAT, "tables": tables}).encode())
    doors = (
        lambda: read_table(store, info.key),
        lambda: read_footer(store, info),
        lambda: triplets.read_triplets(store),
    )
    for read in doors:
        try:
            read()
        except InputError:
            continue


PART_SCHEMA = pa.schema([("subject_hash", pa.int64()), ("text", pa.string()), ("list", pa.list_(pa.string()))])


def _part_rows() -> pa.Table:
    count = GROUP_ROWS + 50
    texts = [f"row {number}" for number in range(count)]
    return pa.table({"subject_hash": np.arange(count), "text": texts, "list": [[text] for text in texts]}, PART_SCHEMA)


def _snapshot_of_one_part(folder: Path) -> tuple[Any, Part]:
    """A store with one part, which is in no list yet."""
    store = open_store(str(folder))
    return store, write_part(store, "images/part-00000.parquet", _part_rows())


def _read_snapshot(store: Any, entry: dict[str, Any]) -> None:
    """Open a snapshot with this list, and read its rows in all ways."""
    tables = {"images": {"rows": GROUP_ROWS + 50, "lists": [entry["name"]]}}
    manifest = {"format": FORMAT, "tables": tables, "files": {entry["name"]: entry["sha256"]}}
    store.write("manifest.json", json.dumps(manifest).encode())
    table = open_table(store, "images", PART_SCHEMA)
    for read in (
        lambda: table.take(np.array([0, GROUP_ROWS + 49])).validate(full=True),
        lambda: table.read_span((1000, 1030)),
        lambda: [part.validate(full=True) for part in table.parts()],
    ):
        try:
            read()
        except InputError:
            continue


def list_seeds(folder: Path) -> list[bytes]:
    """A list of one part."""
    store, part = _snapshot_of_one_part(folder)
    return [store.read(write_list(store, "images", 0, [part])["name"])]


def read_list(data: bytes, folder: Path) -> None:
    """Read a snapshot whose manifest has the hash of this list: what a writer with a defect, or an attacker, made."""
    store, _ = _snapshot_of_one_part(folder / "listed")
    store.write("lists/images-00000.parquet", data)
    _read_snapshot(store, {"name": "lists/images-00000.parquet", "sha256": hashlib.sha256(data).hexdigest()})


def part_seeds(folder: Path) -> list[bytes]:
    """A part of two row groups."""
    store, part = _snapshot_of_one_part(folder)
    return [store.read(part.name)]


def read_part(data: bytes, folder: Path) -> None:
    """Read a part whose hashes are all right in its list, as far as it has the size for them."""
    store, part = _snapshot_of_one_part(folder / "parted")
    store.write(part.name, data)
    ends = [min(end, len(data)) for end in part.group_ends]
    hashes = [hashlib.sha256(data[a:b]).hexdigest() for a, b in pairwise([4, *ends])]
    footer = hashlib.sha256(data[ends[-1] :]).hexdigest()
    changed = dataclasses.replace(
        part,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        group_ends=tuple(ends),
        group_sha256s=tuple(hashes),
        footer_sha256=footer,
    )
    _read_snapshot(store, write_list(store, "images", 0, [changed]))


def _shuffle(folder: Path) -> Shuffle:
    return Shuffle(open_store(str(folder)), "s", PART_SCHEMA, "subject_hash", 1, (1,))


def shuffle_seeds(folder: Path, name: str) -> list[bytes]:
    """An object of a shuffle of one unit."""
    shuffle = _shuffle(folder)
    shuffle.write(0, _part_rows())
    shuffle.write_index(1, 0)
    return [shuffle.store.read(f"s/level-1/{name}")]


def read_shuffle(name: str, *, signed: bool = False) -> Target:
    """Replace one object of a shuffle and read it; ``signed`` gives a segment the checksum of the bytes it has."""

    def target(data: bytes, folder: Path) -> None:
        place = folder / "shuffled"
        shutil.rmtree(place, ignore_errors=True)
        shuffle = _shuffle(place)
        shuffle.write(0, _part_rows())
        shuffle.store.write(f"s/level-1/{name}", data)
        if signed:
            entries = np.array([[0, len(data), crc32(data)], [len(data), len(data), 0]], np.int64)
            shuffle.store.write("s/level-1/00000000.segments", entries.tobytes())
        if not name.startswith("index"):
            shuffle.write_index(1, 0)
        for partition in range(shuffle.partitions):
            shuffle.read(partition).validate(full=True)

    return target


class Bundle:
    """Damages one file of a bundle, and opens the bundle."""

    files = ("bundle.json", "mllm/config.json", "mllm/tokenizer.json", "mllm/tokenizer_config.json", "vae/config.json",
             "mllm/preprocessor_config.json", "transformer/config.json", "scheduler/scheduler_config.json",
             "aggregator/config.json", "aggregator/diffusion_pytorch_model.safetensors")  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = materialise(load_preset("mini"), folder / "bundle", seed=0)

    def seeds(self, name: str) -> list[bytes]:
        return [(self.folder / name).read_bytes()]

    def read(self, name: str) -> Target:
        def target(data: bytes, folder: Path) -> None:
            from lookalike.bundles.locate import locate_bundle

            whole = (self.folder / name).read_bytes()
            try:
                (self.folder / name).write_bytes(data)
                read_bundle_manifest(self.folder)
                located = locate_bundle(str(self.folder))
                fetch_bundle(located)
                read_preset(self.folder)
                token_shape(self.folder)
                load_pipeline(located, "cpu")
            finally:
                (self.folder / name).write_bytes(whole)

        return target


def control_targets(folder: Path) -> dict[str, tuple[list[bytes], Target]]:
    """Each control file with its writer and its reader."""
    store = open_store(str(folder / "seeds"))
    fingerprint = claim(store, CONFIG)
    write_result(store, "result.json", RESULT, fingerprint)
    with hold(store.child("lease")):
        pass
    lease = next(store.child("lease").read(info.key) for info in store.child("lease").list())
    control = open_store(str(folder / "scratch" / "control"))  # where the targets write
    log = Promotion(1, 1, "b" * 64, "s" * 64, None, [CHECK], "2026-01-01T00:00:00Z")
    metrics = {"loss_gap": Estimate(0.2, 0.1, 0.3, 9)}
    scores = Scores(Source("file:///b", "b" * 64), Source("file:///s", "s" * 64, 1), "right", metrics, "e")  # type: ignore[arg-type]
    decision = {"model": "mini", "version": 1, "champion_before": None, "bundle_sha256": "b" * 64, "promoted": True,
                "checks": [CHECK]}  # fmt: skip
    pending = [events.Event("metrics", {"loss": 0.1}, 3, 5), events.Event("artifact", name="a/b.png", data=b"x")]
    tracked = json.dumps({"tracking_run": "r", "submitted": 1.0, "earlier": ["q"]}).encode()
    finetune = {"customer": "acme", "subject": "mug", "scores": control.child("scores").uri}
    trained = {**RESULT, "bundle_uri": control.child("bundle").uri}
    generation = {"model": {"name": "m", "version": 1, "bundle_uri": "x"}, "images": []}

    def at(key: str, read: Callable[[Any], object]) -> Target:
        def target(data: bytes, folder: Path) -> None:
            shutil.rmtree(folder / "control", ignore_errors=True)
            place = open_store(str(folder / "control"))
            place.write(key, data)
            read(place)

        return target

    def claimed(place: Any) -> None:
        read_claim(place)
        claim(place, CONFIG)

    def led(place: Any) -> None:
        with hold(place):
            pass

    def sent(place: Any) -> None:
        for event in events.decode(place.read("p.jsonl")):
            event.send(_tracker(place))

    return {
        "run.json": ([store.read("run.json")], at("run.json", claimed)),
        "result.json": (
            [store.read("result.json")],
            at("result.json", lambda place: read_result(place, "result.json", fingerprint, {"steps": int})),
        ),
        "training's result in a report": (
            [json.dumps(trained).encode()],
            at("result.json", lambda place: (place.write("metrics.jsonl", METRICS), report._training(place))),
        ),
        "metrics.jsonl in a report": (
            [METRICS],
            at("metrics.jsonl", _training_of),
        ),
        "decision.json": (
            [json.dumps(decision).encode()],
            at("d.json", lambda place: report._decision(place.uri_of("d.json"))),
        ),
        "finetune's result": ([json.dumps(finetune).encode()], at("result.json", report._finetune)),
        "generations.json": ([json.dumps(generation).encode()], at("generations.json", report._generation)),
        "lease": ([lease], at("00000001.json", led)),
        "log entry": (
            [configs.canonical_json(dataclasses.asdict(log)).encode()],
            at("mini/00000001.json", lambda place: PromotionLog(place, "mini").entries()),
        ),
        "scores.json": ([scores.to_json()], lambda data, _: Scores.from_json(data, "scores.json")),
        "tracking.json": ([tracked], at("tracking.json", read_tracked)),
        "pending events": ([events.encode(pending)], at("p.jsonl", sent)),
        "manifest of a snapshot": (
            [json.dumps({"counts": {}, "files": {"a": {"sha256": "b" * 64, "size": 3}}, "parent": None}).encode()],
            at("v0001/manifest.json", read_manifest),
        ),
    }  # fmt: skip


def _tracker(place: Any) -> Tracker:
    from lookalike.tracking.files import JsonLinesTracker

    return JsonLinesTracker(place.root / "runs", "fuzz")


def _training_of(place: Any) -> None:
    place.write("result.json", json.dumps({**RESULT, "bundle_uri": place.child("bundle").uri}).encode())
    report._training(place)


def all_targets(folder: Path) -> dict[str, tuple[list[bytes], Target]]:
    """Seeds and reader of each kind, by name."""
    bundle = Bundle(folder)
    return {
        "image": (image_seeds(), read_image),
        "tar": (tar_seeds(), read_tar),
        "json": (json_seeds(), read_labels),
        "parquet": (parquet_seeds(), read_parquet),
        "list of parts": (list_seeds(folder / "list"), read_list),
        "part by row group": (part_seeds(folder / "part"), read_part),
        "shuffle index": (shuffle_seeds(folder / "index", "index-00000000"), read_shuffle("index-00000000")),
        "shuffle segments": (shuffle_seeds(folder / "ends", "00000000.segments"), read_shuffle("00000000.segments")),
        "shuffle rows": (
            shuffle_seeds(folder / "rows", "00000000.arrow"),
            read_shuffle("00000000.arrow", signed=True),
        ),
        **{f"bundle {name}": (bundle.seeds(name), bundle.read(name)) for name in bundle.files},
        **{f"control {name}": target for name, target in control_targets(folder).items()},
    }
