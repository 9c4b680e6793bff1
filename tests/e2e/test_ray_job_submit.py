"""`ray job submit --working-dir .`: a job runs the code of its checkout, whatever is installed on the cluster."""

import time
from pathlib import Path

import pytest

import lookalike
from tests.e2e.conftest import VERSION, Checkout

_WHERE = """
import ray, lookalike, pipelines, platform
ray.init()
def where():
    import lookalike, pipelines
    return [lookalike.__version__, lookalike.__file__, pipelines.__file__]
print("DRIVER", where())
print("TASK", ray.get(ray.remote(where).remote()))
print("PLATFORM", platform.python_version())
"""


@pytest.mark.timeout(600)
def test_driver_and_tasks_see_the_checkout(checkout: Checkout) -> None:
    assert lookalike.__version__ != VERSION  # this process, like the cluster's installation, has the other one
    printed = checkout.submit("python", "-c", _WHERE)
    lines = [line for line in printed.splitlines() if line.startswith(("DRIVER", "TASK"))]
    assert len(lines) == 2, printed
    for line in lines:
        assert f"['{VERSION}'" in line
        assert line.count("/runtime_resources/") == 2
    assert "PLATFORM 3." in printed  # the standard library's, beside a folder of that name


_SAVES_SLOWLY = """
import pathlib, sys, time
from lookalike.storage import open_store
from lookalike.training.stopping import STOP, stops_on_sigterm
folder = pathlib.Path(sys.argv[1])
store = open_store(sys.argv[1])
with stops_on_sigterm(store, grace_s=60):
    (folder / "ready").touch()
    while not store.exists(STOP):
        time.sleep(0.1)
    time.sleep(5)  # longer than Ray waits by default
    (folder / "saved").touch()
"""


@pytest.mark.timeout(600)
def test_a_stopped_job_has_the_time_to_save(checkout: Checkout, tmp_path: Path) -> None:
    checkout.submit("python", "-c", _SAVES_SLOWLY, str(tmp_path), options=("--no-wait", "--submission-id", "slow"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    checkout.ray("job", "stop", "slow")  # returns when it has ended
    assert (tmp_path / "saved").exists()
