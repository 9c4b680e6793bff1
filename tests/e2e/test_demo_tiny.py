"""The demo on its smallest profile, as `make demo` starts it, and what is left when it is over."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image

from lookalike.data.triplets import read_triplets
from lookalike.evaluation.scores import Scores
from lookalike.storage import open_store, read_manifest, version_store
from tests.conftest import REPO, job_environment

DEMO = [sys.executable, str(REPO / "infra" / "demo" / "demo.py"), "--profile", "tiny"]
STEPS = [step["name"] for step in yaml.safe_load((REPO / "infra" / "demo" / "demo.yaml").read_text())["steps"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo of this module puts everything."""
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """What the whole demo prints."""
    done = subprocess.run(
        [*DEMO, "--out", str(folder)], env=job_environment({}), capture_output=True, text=True, timeout=850
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def test_every_step_is_in_the_table_with_its_time_and_memory(printed: str, folder: Path) -> None:
    table = printed[printed.index("what came out") :]
    for step in STEPS:
        row = re.search(rf"^{step} +(\d+) s +(\d+\.\d) GiB   (.+)$", table, re.MULTILINE)
        assert row is not None, table
        assert 0 < float(row.group(2)) < 8
    assert str(folder / "report.html") in printed
    assert [row["step"] for row in json.loads((folder / "timings.json").read_text())] == STEPS


def test_the_snapshot_accounts_for_every_image(printed: str, folder: Path) -> None:
    dataset = open_store(str(folder / "dataset"))
    counts = read_manifest(dataset)["counts"]
    assert counts["images_in"] == counts["images_kept"] + sum(counts["dropped"].values())
    subjects = {split: {t.subject for t in read_triplets(version_store(dataset, 1), split)} for split in _SPLITS}
    assert subjects["train"].isdisjoint(subjects["validation"])


def test_scores_decision_and_images_are_there(printed: str, folder: Path) -> None:
    scores = Scores.from_json((folder / "scores" / "scores.json").read_bytes(), "scores")
    assert scores.metrics["loss_gap"].n == 16
    assert json.loads((folder / "promotion" / "decision.json").read_text())["checks"]
    listed = json.loads((folder / "images" / "generations.json").read_text())["images"]
    assert len(listed) >= 4
    for image in listed:
        assert Image.open(folder / "images" / image["file"]).size == (64, 64)


def test_the_page_shows_every_section(printed: str, folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for section in ("generation", "curation", "training", "decision", "finetune", "cost"):
        assert f'id="{section}"' in page
    assert page.count("data:image/") > 10


def test_nothing_of_it_runs_on(printed: str, folder: Path) -> None:
    assert _processes_of(folder) == []


def test_the_same_command_again_makes_nothing_anew(printed: str, folder: Path) -> None:
    kept = {path: path.stat().st_mtime_ns for path in _results(folder)}
    done = subprocess.run(
        [*DEMO, "--out", str(folder)], env=job_environment({}), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in _results(folder)} == kept


def test_an_interrupted_demo_stops_its_cluster(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*DEMO, "--out", str(tmp_path / "out")],
        env=job_environment({}),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "out" / "logs" / "01-ingest.log"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and "Tailing logs" in log.read_text()):
        time.sleep(0.5)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(timeout=90) == 130
    assert _processes_of(tmp_path) == []


def test_a_failing_step_is_named_with_its_error(tmp_path: Path) -> None:
    for name in ("cup", "hat", "mug"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    (tmp_path / "photos" / "cup" / "00.jpg").write_bytes(b"no image")
    done = subprocess.run(
        [*DEMO, "--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "out")],
        env=job_environment({}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "jobs/ingest.py" in done.stderr
    assert re.search(r"error: .*", done.stderr)
    assert _processes_of(tmp_path) == []


_SPLITS = ("train", "validation")


def _results(folder: Path) -> list[Path]:
    names = ("run.json", "result.json", "scores.json", "decision.json", "generations.json", "manifest.json", "*.png")
    return sorted(path for name in names for path in folder.rglob(name) if "stack" not in path.parts)


def _processes_of(folder: Path) -> list[str]:
    """Processes whose command line or working directory lies in ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        text = " ".join([*(process.info["cmdline"] or []), process.info["cwd"] or ""])
        if str(folder) in text and process.pid != psutil.Process().pid:
            found.append(text)
    return found
