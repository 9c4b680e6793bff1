"""`ray job submit --working-dir .`: a job runs the code of its checkout, whatever is installed on the cluster."""

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
