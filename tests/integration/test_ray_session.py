"""Jobs join the cluster that RAY_ADDRESS names, or say that it is not there; without one they start their own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.conftest import job_environment

_SESSION = """
from lookalike.errors import UnreachableError
from pipelines.entry import ray_session
try:
    with ray_session():
        import ray
        print("joined", ray.cluster_resources()["CPU"])
except UnreachableError as error:
    print(error)
"""

_ON_A_BUSY_MACHINE = """
import ray, subprocess
late, start = [Exception("The current node timed out during startup. This could happen because ...")], ray.init
def init(*address, **options):
    if late:
        left = subprocess.Popen(["sleep", "60"])
        print("left", left.pid)
        raise late.pop()
    return start(*address, **options)
ray.init = init
"""


def _run(environment: dict[str, str], before: str = "") -> str:
    argv = [sys.executable, "-c", before + _SESSION]
    done = subprocess.run(argv, env=job_environment(environment), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_down_is_named_within_30_s(scheme: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{closed.getsockname()[1]}"
    started = time.monotonic()
    assert f"Ray does not answer ('{address}')" in _run({"RAY_ADDRESS": address})
    assert time.monotonic() - started < 30


def test_a_cluster_with_a_token_is_joined_with_it_only(ray_cluster: dict[str, str]) -> None:
    assert "joined 4.0" in _run(ray_cluster)
    without = {"RAY_ADDRESS": ray_cluster["RAY_ADDRESS"], "RAY_AUTH_MODE": "disabled", "HOME": os.devnull}
    assert "RAY_AUTH_MODE" in _run(without)


def test_somebody_else_s_cluster_on_the_machine_is_not_joined() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 7, "object_store_memory": 128 << 20})
    try:
        said = _run({})
    finally:
        cluster.shutdown()
    assert "joined" in said
    assert "joined 7.0" not in said


def test_a_node_that_came_up_too_late_is_started_again() -> None:
    said = _run({}, before=_ON_A_BUSY_MACHINE).split()
    assert "joined" in said
    assert not Path(f"/proc/{said[said.index('left') + 1]}").exists()
