"""Measure images per second of curation's index and plan, of two bare processes, and of a plain Ray Data pipeline.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k curation_speed -s

FOLDER holds ``<subject>/<nn>.jpg`` photos, which are repeated to 12,800 in 64 shards (LOOKALIKE_BENCH_SPEED_SHARDS);
without it the test is skipped. Writes results/curation-speed.json. Ray and its own helpers run before a clock starts,
as on a cluster; the processes that do the work are started inside the clock.
"""

import hashlib
import io
import multiprocessing
import os
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.annotators.embedder import load_embedder
from lookalike.data.images import decode, decode_noted
from lookalike.storage import open_store
from pipelines.curate import CurateConfig, curate
from pipelines.curate.config import PlanConfig, ShardsConfig
from pipelines.curate.features import FEATURE_SIDE, features
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.index import IndexWork, RawShard, index_shard
from pipelines.curate.inputs import Inputs
from pipelines.curate.raw import list_raw, raw_store
from tests.bench.measured import keep
from tests.bench.repeated import bench_photos, write_repeated

SHARDS, PER_SHARD = int(os.environ.get("LOOKALIKE_BENCH_SPEED_SHARDS", "64")), 200
ROUNDS, WHOLE_ROUNDS = 7, (0, 3, 6)  # interleaved; those in which the slow pipelines run too
EMBEDDED_SHARDS = 8  # of them are indexed with the default embedder
DUPLICATES_STAY = ["exact_duplicate", "near_duplicate", "off_subject"]
_DECODE_SIDE = FEATURE_SIDE + 8  # px; as the index decodes

pytestmark = pytest.mark.timeout(7200)


@pytest.fixture(scope="module")
def raw(bench_folder: Path) -> Path:
    """The shards. Each repetition of a photo belongs to another subject."""
    return write_repeated(bench_folder / "speed-raw", bench_photos(), SHARDS, PER_SHARD)


@pytest.fixture(scope="module")
def ray_two_cpus() -> Iterator[None]:
    """A Ray of two CPUs, as a job on this machine gets."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2 << 30, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    assert ray.data.range(1).count() == 1
    yield
    ray.shutdown()


def test_index_and_plan_against_bare_processes_and_ray_data(raw: Path, ray_two_cpus: None, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(raw.glob("*.tar"))]
    some = tmp_path / "some"
    some.mkdir()
    for path in paths[:EMBEDDED_SHARDS]:
        (some / Path(path).name).hardlink_to(path)
    measured = {
        "curation": lambda: curation(raw, tmp_path / "dataset", "none"),
        "two bare processes": lambda: bare(paths, None),
        "obvious pipeline": lambda: obvious(paths),
        "curation with the default embedder": lambda: curation(some, tmp_path / "dataset", _DEFAULT),
        "two bare processes with the default embedder": lambda: bare(paths[:EMBEDDED_SHARDS], _DEFAULT),
    }
    speeds: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(ROUNDS):
        for name, measure in measured.items():
            if name not in ("curation", "two bare processes") and number not in WHOLE_ROUNDS:
                continue
            images, seconds = measure()
            speeds[name].append(images / seconds)
            print(f"{name}: {images} images in {seconds:.1f} s, {images / seconds:.0f} images/s", flush=True)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    ours = median["curation"]
    sizes = [path.stat().st_size for path in raw.glob("*.tar")]
    record = {
        "command": f"LOOKALIKE_BENCH_SPEED_SHARDS={SHARDS} LOOKALIKE_BENCH_PHOTOS=dreambooth-dev python -m pytest "
        "tests/bench -k curation_speed -s",
        "images": SHARDS * PER_SHARD,
        "kib_per_image": round(sum(sizes) / SHARDS / PER_SHARD / 1024),
        "decoded_at": f"n/8 of the size, short side >= {_DECODE_SIDE} px, features at {FEATURE_SIDE} px",
        "images_per_second": {name: {"median": round(median[name]), "runs": _rounded(speeds[name])} for name in speeds},
        "of_two_bare_processes": round(ours / median["two bare processes"], 3),
        "times_the_obvious_pipeline": round(ours / median["obvious pipeline"], 2),
        "with_the_default_embedder_of_two_bare_processes": round(
            median["curation with the default embedder"] / median["two bare processes with the default embedder"], 3
        ),
        "share_of_the_embedder_in_a_bare_process": round(_share_of_the_embedder(paths[0]), 3),
    }
    record["of_each_round_of_two_bare_processes"] = [
        round(one / other, 3) for one, other in zip(speeds["curation"], speeds["two bare processes"], strict=True)
    ]
    record["milliseconds_of_a_core_per_image"] = profile(paths[0], tmp_path / "profile")
    keep("curation-speed", record)
    assert record["of_two_bare_processes"] >= 0.9
    assert record["times_the_obvious_pipeline"] >= 4.5


_DEFAULT = "efficientnet-lite0-colour"


def curation(raw: Path, dataset: Path, embedder: str) -> tuple[int, float]:
    """Images, and the seconds until the last range of subjects was planned. Duplicates stay; few triplets are made."""
    shutil.rmtree(dataset, ignore_errors=True)
    started = time.time()
    result = curate(_config(raw, dataset, embedder))
    planned = max(path.stat().st_mtime for path in (dataset / "work" / "plan").rglob("*.summary.json"))
    assert set(result.manifest["counts"]["dropped"]) <= {"single_photo"}
    return result.manifest["counts"]["images_in"], planned - started


def _config(raw: Path, dataset: Path, embedder: str) -> CurateConfig:
    filters = FiltersConfig(no_pair=NoPair(min_similarity=-1.0), skip=DUPLICATES_STAY)
    if embedder != "none":
        filters = FiltersConfig(no_pair=NoPair(min_similarity=-1.0, max_similarity=0.98), skip=DUPLICATES_STAY)
    return CurateConfig(
        raw=str(raw),
        dataset=str(dataset),
        embedder=embedder,
        filters=filters,
        plan=PlanConfig(max_triplets_per_subject=1),
        shards=ShardsConfig(image_size=None),
    )


def bare(paths: list[str], embedder: str | None) -> tuple[int, float]:
    """The same decode and features in two plain processes, each with half of the shards."""
    started = time.time()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.starmap(_bare, [(paths[0::2], embedder), (paths[1::2], embedder)], chunksize=1)
    return sum(counts), time.time() - started


def _bare(paths: list[str], embedder: str | None) -> int:
    embed = _one_thread_embedder(embedder) if embedder else None
    images = 0
    for path in paths:
        batch = []
        for data in _images(path):
            features(decode_noted(data, _DECODE_SIDE, luma=True).pixels)
            images += 1
            if embed:
                batch.append(decode(data, _DECODE_SIDE))
            if embed and len(batch) == 32:
                embed(batch)
                batch = []
        if embed and batch:
            embed(batch)
    return images


def _images(path: str) -> Iterator[bytes]:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file and member.name.endswith(".jpg"):
                yield file.read()


def _one_thread_embedder(name: str) -> Any:
    import torch

    torch.set_num_threads(1)
    return load_embedder(name)


def obvious(paths: list[str]) -> tuple[int, float]:
    """A plain pipeline: ``read_webdataset``, then ``map_batches`` with PIL."""
    import ray.data

    started = time.time()
    rows = ray.data.read_webdataset(paths, decoder=None).map_batches(_look, batch_size=32)
    return sum(len(batch["phash"]) for batch in rows.iter_batches(batch_size=None)), time.time() - started


def _look(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = []
    for data in batch["jpg"]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = FEATURE_SIDE / min(image.size)
        found.append(features(np.asarray(image.resize((round(image.width * scale), round(image.height * scale))))))
    return {name: np.array([row[name] for row in found]) for name in found[0]}


def profile(path: str, folder: Path) -> dict[str, float]:
    """Milliseconds of one core for an image of a shard: of each part of the index, and of the whole index."""
    parts: dict[str, Callable[[bytes], Any]] = {
        "hash": lambda data: hashlib.sha256(data).digest(),
        "decode": lambda data: decode_noted(data, _DECODE_SIDE, luma=True),
        "features": lambda data: features(decode_noted(data, _DECODE_SIDE, luma=True).pixels),
    }
    images = list(_images(path))
    spent = {name: min(_milliseconds(part, images) for _ in range(3)) for name, part in parts.items()}
    spent["features"] -= spent["decode"]
    config = _config(folder / "raw", folder / "dataset", "none")
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / Path(path).name).hardlink_to(path)
    listing = list_raw(config.raw, open_store(config.dataset))
    indexes = []
    for number in range(3):
        dataset = open_store(config.dataset).child(str(number))
        work = IndexWork(config, Inputs.of(config, listing.shards), raw_store(config.raw), dataset)
        started = time.process_time()
        index_shard(work, RawShard(0, listing.shards[0]))
        indexes.append((time.process_time() - started) / len(images) * 1e3)
    spent["tar, labels, rows and tables"] = min(indexes) - sum(spent.values())
    return {name: round(value, 3) for name, value in spent.items()} | {"index": round(min(indexes), 3)}


def _milliseconds(part: Callable[[bytes], Any], images: list[bytes]) -> float:
    started = time.process_time()
    for data in images:
        part(data)
    return (time.process_time() - started) / len(images) * 1e3


def _share_of_the_embedder(path: str) -> float:
    embed, spent = _one_thread_embedder(_DEFAULT), {"decode": 0.0, "embed": 0.0}
    for data in islice(_images(path), 64):
        started = time.perf_counter()
        features(decode_noted(data, _DECODE_SIDE, luma=True).pixels)
        pixels = decode(data, _DECODE_SIDE)
        decoded = time.perf_counter()
        embed([pixels])
        spent["decode"] += decoded - started
        spent["embed"] += time.perf_counter() - decoded
    return spent["embed"] / sum(spent.values())


def _rounded(values: list[float]) -> list[int]:
    return [round(value) for value in values]
