"""Curate over S3 while one request in a hundred fails, compared with Ray Data's reader on the same shards.

    python -m pytest tests/bench -k faults -s

Writes results/curation-faults.json. Faults: 503, reset before and after the server acted, a body that breaks off in the
middle, a body that stalls (faulty_s3.py).
"""

import io
import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lookalike.storage import Store, open_store
from pipelines.private_ray import MODE, TOKEN_PATH
from tests.bench.measured import keep
from tests.conftest import REPO, job_environment
from tests.drawn import photo, write_raw

SUBJECTS, VIEWS, PER_SHARD = 160, 5, 40  # 20 shards of about 6 MiB: each takes two range requests
RATE = 0.01
SEEDS = (1, 2, 3)
SETTINGS = (
    "--embedder=none", "--filters.skip=[near_duplicate,off_subject]", "--filters.no_pair.min_similarity=0",
    "--plan.max_triplets_per_target=1", "--shards.shard_mib=16", "--shards.image_size=null",
)  # fmt: skip
_PROXY = REPO / "tests" / "faulty_s3.py"
_RAY_READER = """
import collections, json, sys, pyarrow.fs, ray
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
bucket, endpoint, times, access, secret = sys.argv[1:]
files = pyarrow.fs.S3FileSystem(
    access_key=access, secret_key=secret, endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=False
)
for _ in range(int(times)):
    try:
        rows = ray.data.read_webdataset(bucket, filesystem=files, decoder=None).select_columns(["__key__"]).take_all()
        counts = collections.Counter(row["__key__"] for row in rows)
        print(json.dumps({"keys": len(counts), "doubled": sum(n > 1 for n in counts.values())}), flush=True)
    except Exception as error:
        print(json.dumps({"failed": str(error).strip().splitlines()[-1][-200:]}), flush=True)
"""

RunJob = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.timeout(7200)


@contextmanager
def faulty(upstream: str, seed: int) -> Iterator[str]:
    """The URL of a proxy that lets requests to ``upstream`` fail."""
    argv = [sys.executable, str(_PROXY), upstream, "--rate", str(RATE), "--seed", str(seed)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


def faults(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/-/faults", timeout=10) as answer:
        return dict(json.load(answer))


def test_failed_requests_lose_and_repeat_nothing(
    s3_uri: str,
    s3_server: dict[str, str],
    tmp_path: Path,
    run_job: RunJob,
) -> None:
    photos = [photo(subject, view, 640) for subject in range(SUBJECTS) for view in range(VIEWS)]
    raw = open_store(f"{s3_uri}/raw")
    for path in sorted(write_raw(tmp_path / "raw", photos, PER_SHARD).glob("*.tar")):
        raw.upload(path.name, path)
    upstream = s3_server["AWS_ENDPOINT_URL"]
    expected = _curate(run_job, s3_uri, "quiet", s3_server)
    runs = []
    for seed in SEEDS:
        with faulty(upstream, seed) as url:
            found = _curate(run_job, s3_uri, f"faulty-{seed}", {**s3_server, "AWS_ENDPOINT_URL": url})
            runs.append({**faults(url), **_samples(found, photos), "same_bytes": found == expected})
    with faulty(upstream, 0) as url:
        reads = _ray_reads(f"{s3_uri.removeprefix('s3://')}/raw", url, s3_server, len(photos))
        of_ray = {**faults(url), **reads}
    record = {
        "command": "python -m pytest tests/bench -k faults -s",
        "rate": RATE,
        "samples": len(photos),
        "shards": len(list(raw.list())),
        "curation": runs,
        "ray_read_webdataset": of_ray,
    }
    keep("curation-faults", record)
    for run in runs:
        assert run["faults"]
        assert (run["lost"], run["doubled"], run["same_bytes"]) == (0, 0, True)


def _curate(run_job: RunJob, prefix: str, name: str, env: dict[str, str]) -> dict[str, bytes]:
    """Curate through the endpoint of ``env``; the snapshot's objects, read without the proxy."""
    done = run_job("curate", "run", "--raw", f"{prefix}/raw", "--dataset", f"{prefix}/{name}", *SETTINGS, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    snapshot: Store = open_store(f"{prefix}/{name}/v0001")
    return {info.key: snapshot.read(info.key) for info in snapshot.list()}


def _samples(found: dict[str, bytes], photos: list[Any]) -> dict[str, int]:
    tables = (io.BytesIO(data) for name, data in found.items() if name.startswith("images/"))
    counts = Counter(key for table in tables for key in pq.read_table(table, columns=["key"])["key"].to_pylist())
    return {"lost": len({p.key for p in photos} - counts.keys()), "doubled": sum(n > 1 for n in counts.values())}


def _ray_reads(bucket: str, url: str, s3: dict[str, str], samples: int, times: int = 20) -> dict[str, Any]:
    """Samples that Ray Data's reader gives of the same shards, in repeated reads."""
    endpoint, keys = url.removeprefix("http://"), (s3["AWS_ACCESS_KEY_ID"], s3["AWS_SECRET_ACCESS_KEY"])
    argv = [sys.executable, "-c", _RAY_READER, bucket, f"http://{endpoint}", str(times), *keys]
    environment = job_environment({**s3, MODE: os.environ[MODE], TOKEN_PATH: os.environ.get(TOKEN_PATH, "")})
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=3000)
    assert done.returncode == 0, done.stderr[-4000:]
    reads = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    whole = [read for read in reads if "keys" in read]
    return {
        "reads": len(reads),
        "reads_that_failed": len(reads) - len(whole),
        "errors": sorted({read["failed"] for read in reads if "failed" in read})[:5],
        "reads_that_lost_samples": sum(read["keys"] < samples for read in whole),
        "samples_lost": sum(samples - read["keys"] for read in whole),
        "doubled": sum(read["doubled"] for read in whole),
    }
