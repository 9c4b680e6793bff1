"""The demo's list of commands and its parsing of job output; no cluster is started."""

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
FOLDER = REPO / "infra" / "demo"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    return _load("demo")


@pytest.fixture(scope="module")
def cluster() -> ModuleType:
    return _load("cluster")


def _load(name: str) -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


def _values(folder: str = "/tmp/with blank") -> dict[str, str]:
    return {"DEMO": folder, "DATA": folder, "PROFILE": "tiny", "CUSTOMER": "acme"}


@pytest.mark.parametrize("source", ["sample", "photos"])
def test_every_step_is_a_command_of_a_job(demo: ModuleType, source: str) -> None:
    values = _values()
    if source == "photos":
        values |= {"PHOTOS": "/my photos", "SUBJECT": "mug", "THING": "a mug"}
    steps, values = demo.load(source, values)
    for step in steps:
        words = demo.expand(step["run"], values)
        assert words[0] == "python"
        assert words[1].startswith("jobs/")
        assert not any("$" in word for word in words)
    names = [step["name"] for step in steps]
    assert names.index("curate") < names.index("train") < names.index("promote") < names.index("finetune")


def test_values_with_spaces_stay_one_word(demo: ModuleType) -> None:
    steps, values = demo.load("sample", _values())
    words = demo.expand(steps[0]["run"], values)
    assert "/tmp/with blank/raw" in words


def test_every_configuration_of_a_profile_exists() -> None:
    plan = (FOLDER / "demo.yaml").read_text()
    for profile in ("demo", "tiny"):
        for line in plan.split():
            if line.startswith("jobs/configs/"):
                assert (REPO / line.replace("$PROFILE", profile)).is_file(), line


def test_refused_model_changes_the_values_of_later_steps(demo: ModuleType) -> None:
    steps = yaml.safe_load((FOLDER / "demo.yaml").read_text())["steps"]
    refused = next(step["if_refused"] for step in steps if step["name"] == "promote")
    _, values = demo.load("sample", _values("/d"))
    assert demo.expand_text(refused["values"]["MODEL"], values) == "/d/run/bundle"


def test_last_subject_of_a_folder_is_the_customers(demo: ModuleType, tmp_path: Path) -> None:
    for name in ("dog", "old_clock_02", "cat"):
        (tmp_path / name).mkdir()
    (tmp_path / "zzz.txt").touch()
    assert demo.photo_values(tmp_path) == {"PHOTOS": str(tmp_path), "SUBJECT": "old_clock_02", "THING": "an old clock"}


def test_too_few_subjects_are_refused(demo: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="at least three"):
        demo.photo_values(tmp_path / "nowhere")


SUBMISSION = """\
2026-01-01 10:00:00,000\tINFO cli.py:351 -- Tailing logs until the job exits (disable with --no-wait):
2026-01-01 10:00:00,000\tINFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job raysubmit_a: python jobs/x.py
10:00:01 INFO pipelines.x: 1 of 2 done
\x1b[36m(worker pid=12)\x1b[0m warming up
3 things at /tmp/x
\x1b[36m(worker pid=12)\x1b[0m good bye
(pid=1745) - MapBatches: Tasks: 0: 100%|██████████| 80.0/80.0 [00:22<00:00, 3.60 row/s]
[2026-01-01 10:00:01,943 E 1409 1525] core_worker.cc:2465: an actor
2026-01-01 10:00:02,000\tSUCC cli.py:66 -- ------------------
2026-01-01 10:00:02,000\tSUCC cli.py:67 -- Job 'raysubmit_a' succeeded
"""


def test_outcome_is_the_last_line_of_the_job(cluster: ModuleType) -> None:
    log = io.StringIO()
    assert cluster._follow(io.StringIO(SUBMISSION), log, cluster.Progress("x")) == "3 things at /tmp/x"
    assert "warming up" in log.getvalue()
    assert "\x1b" not in log.getvalue()


def test_progress_shows_log_lines_of_the_job(cluster: ModuleType) -> None:
    shown: list[str] = []

    class Recorder:
        def show(self, line: str) -> None:
            shown.append(line)

        def close(self) -> None:
            pass

    cluster._follow(io.StringIO(SUBMISSION), io.StringIO(), Recorder())
    assert shown == ["1 of 2 done"]


def test_memory_of_descendants_counts_shared_pages_once(cluster: ModuleType) -> None:
    import subprocess
    import time

    import psutil

    code = "block = bytearray(80 << 20); block[::4096] = b'x' * len(block[::4096]); import time; time.sleep(30)"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        with cluster.MemoryWatch(psutil.Process(child.pid), every_s=0.2) as memory:
            time.sleep(2.5)
        assert 80 << 20 < memory.peak_bytes < 140 << 20
    finally:
        child.kill()
        child.wait()
