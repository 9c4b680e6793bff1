"""An elastic training run on a Ray cluster of two nodes, one of which is removed and added again."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from lookalike.data.triplets import read_table
from lookalike.storage import open_store, version_store
from lookalike.training.checkpoint import newest
from lookalike.training.ledger import read_ledger
from pipelines.curate import CurateConfig, curate
from tests.conftest import REPO, job_environment
from tests.drawn import world, write_raw

pytestmark = pytest.mark.timeout(900)

STEPS = 60


@pytest.fixture
def dataset(ray_local: None, tmp_path: Path) -> Path:
    curate(CurateConfig(raw=str(write_raw(tmp_path / "raw", world(5, 3))), dataset=str(tmp_path / "dataset")))
    return tmp_path / "dataset"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with one logical CPU."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 256 << 20})
    yield cluster
    cluster.shutdown()


def wait_for(what: str, log: Path, job: subprocess.Popen[bytes], seen: int = 0) -> int:
    """Until the log says ``what`` behind its first ``seen`` characters; returns where."""
    deadline = time.monotonic() + 180
    while (place := log.read_text().find(what, seen)) < 0:
        assert job.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)
    return place + len(what)


def test_a_run_continues_with_fewer_ranks_and_with_more_again(
    dataset: Path, cluster: Cluster, ray_token: dict[str, str], tmp_path: Path
) -> None:
    argv = [
        *(sys.executable, str(REPO / "jobs" / "train.py"), "run", f"--dataset={dataset}", f"--run={tmp_path / 'run'}"),
        *("--workers.num_workers=2", "--workers.min_workers=1", "--workers.resize_every_s=1"),
        *("--workers.cpus_per_worker=1", "--keep_samples=true", "--batch_size=4", "--micro_batch_size=2"),
        *("--validation.samples=0", "--checkpoint.every=2", "--log_every=1"),
        f"--tracking=jsonl:{tmp_path / 'tracking'}",
        f"--stages=[{{name: both, steps: {STEPS}, conditions: mllm+references}}]",
    ]
    second = cluster.add_node(num_cpus=1, object_store_memory=256 << 20)
    cluster.wait_for_nodes()
    log, run = tmp_path / "job.log", open_store(str(tmp_path / "run"))
    with log.open("wb") as file:
        environment = job_environment({"RAY_ADDRESS": cluster.address, **ray_token})
        job = subprocess.Popen(argv, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            seen = wait_for("on 2 ranks", log, job)
            seen = wait_for(f"step 5/{STEPS}", log, job, seen)
            cluster.remove_node(second, allow_graceful=False)
            seen = wait_for("on 1 rank", log, job, seen)
            assert newest(run) >= 4
            seen = wait_for(" step ", log, job, seen)
            cluster.add_node(num_cpus=1, object_store_memory=256 << 20)
            wait_for("on 2 ranks", log, job, seen)
            assert job.wait(timeout=300) == 0, log.read_text()[-4000:]
        finally:
            job.kill()
    steps = read_ledger(run)
    assert [step["step"] for step in steps] == list(range(STEPS))
    table = read_table(version_store(open_store(str(dataset)), 1), "train")
    samples = Counter((step["epoch"], sample) for step in steps for sample in step["samples"])
    whole = range(steps[-1]["epoch"])
    assert set(samples.values()) == {1}
    assert all({s for e, s in samples if e == epoch} == set(table["triplet_id"].to_pylist()) for epoch in whole)
    assert json.loads(run.read("result.json"))["steps"] == STEPS
