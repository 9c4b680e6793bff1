"""`ray job submit --working-dir .`: a job runs the code of its checkout, whatever is installed on the cluster."""

import json

import pytest

import lookalike
from lookalike.storage import open_store, read_manifest
from tests.e2e.conftest import METRICS, ROOT, VERSION, Checkout

pytestmark = [pytest.mark.usefixtures("cluster_environment"), pytest.mark.timeout(1800)]

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


def test_driver_and_tasks_see_the_checkout(checkout: Checkout) -> None:
    assert lookalike.__version__ != VERSION  # this process, like the cluster's installation, has the other one
    printed = checkout.submit("python", "-c", _WHERE)
    lines = [line for line in printed.splitlines() if line.startswith(("DRIVER", "TASK"))]
    assert len(lines) == 2, printed
    for line in lines:
        assert f"['{VERSION}'" in line
        assert line.count("/runtime_resources/") == 2
    assert "PLATFORM 3." in printed  # the standard library's, beside a folder of that name


def test_a_snapshot_is_made_by_the_checkout(submitted: Checkout) -> None:
    manifest = read_manifest(open_store(f"{ROOT}/dataset"))
    assert manifest["code_version"].startswith(VERSION)
    counts = manifest["counts"]
    assert counts["images_in"] == counts["images_kept"] + sum(counts["dropped"].values())
    assert counts["triplets"]["train"] > 0
    assert counts["triplets"]["validation"] > 0


def test_train_workers_run_the_checkout(submitted: Checkout) -> None:
    run = open_store(f"{ROOT}/run")
    records = [json.loads(line) for line in run.read(METRICS).splitlines()]
    assert not run.exists("metrics.jsonl")
    assert {record["step"] for record in records} == set(range(20))
    result = json.loads(run.read("result.json"))
    assert result["steps"] == 20
    assert open_store(result["bundle_uri"]).exists("bundle.json")


def test_generate_with_what_was_trained(submitted: Checkout, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("generate")
    (folder / "photo.jpg").write_bytes(_a_photo(f"{ROOT}/dataset"))
    out = folder / "images"
    printed = submitted.submit(
        *("python", "jobs/generate.py", "--model", f"{ROOT}/run/bundle", "--reference", str(folder / "photo.jpg")),
        *("--prompt", "a red toy on grass", "--steps", "4", "--out", str(out)),
    )
    assert "1 images" in printed
    assert json.loads((out / "generations.json").read_text())["images"]
    assert (out / "contact_sheet.png").stat().st_size > 0


def _a_photo(dataset: str) -> bytes:
    from lookalike.data.triplets import read_triplets
    from lookalike.storage import latest_version, version_store

    store = open_store(dataset)
    version = version_store(store, latest_version(store))
    triplet = read_triplets(version, "validation")[0]
    return version.read_range(triplet.shard, triplet.target_offset, triplet.target_length)
