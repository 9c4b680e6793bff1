"""Real jobs with secrets in their environment and settings: nothing that they write, print or show holds one."""

import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from lookalike.bundles.build import materialise
from lookalike.models.presets import load_preset
from lookalike.storage import open_store
from tests.conftest import REPO, LocalStack, job_environment

PLANTED = {  # each as it is typed; none of them is real
    "tracking password": "tr4cking/PW#1",  # pragma: allowlist secret
    "HF_TOKEN": "hf_" + "Pl4nted" * 6,
    "MLFLOW_TRACKING_TOKEN": "mlfl0wTokenPlanted",
    "proxy password": "pr0xyPlanted",  # pragma: allowlist secret
    "AWS_SESSION_TOKEN of a comment": "s3ssionPlanted",
    "query": "qu3ryPlanted",
}
# of the local stack, private to their owner
_MAY_HOLD_KEYS = {"env", "s3.json", "stack.json", "ray-token", "mlflow-auth.ini", "weed.key"}


class ProcessTitles:
    """Command lines that held a secret while Ray's processes ran, which is after a job's first seconds."""

    def __init__(self, secrets: list[str], ray_folder: Path) -> None:
        self._secrets, self._ray, self._done = secrets, str(ray_folder), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.shown: set[str] = set()
        self.looked = 0

    def __enter__(self) -> "ProcessTitles":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
            if any("raylet" in line and self._ray in line for line in lines):
                self.looked += 1
                self.shown |= {line for line in lines if any(secret in line for secret in self._secrets)}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where the private clusters of the test's jobs keep their logs; Unix sockets want a short path."""
    folder = Path("/tmp") / f"ps-{uuid.uuid4().hex[:6]}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(1800)
def test_no_job_writes_prints_or_shows_a_planted_secret(
    local_stack: LocalStack,
    s3_server: dict[str, str],
    mlflow_server: str,
    mlflow_user: Callable[[str, str], None],
    tmp_path: Path,
    ray_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = [*PLANTED.values(), quote(PLANTED["tracking password"], safe=""), s3_server["AWS_SECRET_ACCESS_KEY"]]
    mlflow_user("eve", PLANTED["tracking password"])
    tracking = mlflow_server.replace("://", f"://eve:{quote(PLANTED['tracking password'], safe='')}@")
    away = "http://mia:" + PLANTED["tracking password"] + "@127.0.0.1:9"
    environment = {
        **s3_server,
        "HF_TOKEN": PLANTED["HF_TOKEN"],
        "MLFLOW_TRACKING_TOKEN": PLANTED["MLFLOW_TRACKING_TOKEN"],
        "HTTPS_PROXY": f"http://mia:{PLANTED['proxy password']}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
        "RAY_TMPDIR": str(ray_folder),
        "LOOKALIKE_LOG_LEVEL": "DEBUG",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "TMPDIR": str(tmp_path / "scratch"),
    }
    (tmp_path / "scratch").mkdir()
    uri = f"s3://scratch/{uuid.uuid4().hex}"
    base = materialise(load_preset("mini"), tmp_path / "base", seed=0)
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"tracking: {tracking}\n")
    finetune = ("finetune", "run", "--config", "jobs/configs/finetune-tiny.yaml", "--workers.num_workers", "1")
    commands: list[tuple[int | None, tuple[str, ...]]] = [
        (0, ("ingest", "--source", "sample", "--sample.seed", "4", "--sample.subjects", "1", "--sample.shapes",
             "[duck]", "--sample.defects", "false", "--raw", f"{uri}/customer", "--photos", str(tmp_path / "photos"))),
        (0, (*finetune, "--actors.count", "1", "--customer", "acme", "--subject", "duck", "--photos",
             f"{uri}/customer", "--model", str(base), "--store", f"{uri}/store", "--tracking", tracking)),
        (0, ("generate", "--config", str(settings), "--model", "models:/acme--duck/1", "--reference",
             str(tmp_path / "photos"), "--prompt", "a duck", "--steps", "2", "--actors.count", "1",
             "--out", f"{uri}/images")),
        (0, ("report", "--finetune", f"{uri}/store/customers/acme/duck", "--generation", f"{uri}/images",
             "--out", f"{uri}/report.html")),
        (2, ("promote", "run", "--model", "acme--duck", "--scores", f"{uri}/none", "--out", f"{uri}/p",
             "--tracking", away)),
        (2, ("generate", "--model", "models:/acme--duck/1", "--prompt", "x", "--out", f"{uri}/i", "--tracking", away)),
        (2, ("generate", "--model", f"s3://AKIA:{PLANTED['query']}@bucket/x", "--prompt", "x", "--out", f"{uri}/i")),
        (2, ("generate", "--model", f"https://host/x?token={PLANTED['query']}", "--prompt", "x", "--out", f"{uri}/i")),
        (2, ("generate", "--model", "m", "--prompt", "x", "--out", f"{uri}/i", "--tracking", tracking[7:])),
        (2, ("generate", "--modle", f"https://host/x?X-Amz-Signature={PLANTED['query']}", "--out", f"{uri}/i")),
        (2, ("curate", "run", "--raw", f"file://mia:{PLANTED['query']}@host/x", "--dataset", f"{uri}/d")),
        (0, ("promote", "rollback", "--model", "acme--duck", "--out", f"{uri}/p", "--tracking", tracking,
             "--reason", "grey", "--print_config")),
    ]  # fmt: skip
    printed = {}
    with ProcessTitles(secrets, ray_folder) as titles:
        for code, (job, *arguments) in commands:
            argv = [sys.executable, str(REPO / "jobs" / f"{job}.py"), *arguments]
            started = time.monotonic()
            done = subprocess.run(
                argv, env=job_environment(environment), cwd=REPO, capture_output=True, text=True, timeout=900
            )
            print(f"{job} took {time.monotonic() - started:.0f} s and ended with {done.returncode}")
            assert code is None or done.returncode == code, done.stdout[-2000:] + done.stderr[-6000:]
            printed[f"{job} {len(printed)}"] = done.stdout + done.stderr
    assert titles.looked > 5
    assert titles.shown == set()

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    store = open_store(uri)
    objects = {info.key: store.read(info.key) for info in store.list() if info.size}
    logs = [file for file in ray_folder.rglob("*") if file.is_file() and not file.is_symlink()]
    tracked = [file for file in local_stack.folder.rglob("*") if file.is_file() and file.name not in _MAY_HOLD_KEYS]
    tracked = [file for file in tracked if "s3" not in file.relative_to(local_stack.folder).parts[0]]
    stored = [file for file in (tmp_path / "scratch").rglob("*") if file.is_file()]
    assert len(objects) > 50
    assert len(logs) > 20
    assert {"run.json", "result.json", "decision.json", "scores.json", "generations.json", "tracking.json"} <= {
        key.rpartition("/")[2] for key in objects
    }
    assert any(file.name.startswith("mlflow.db") for file in tracked)
    leaks = {
        f"{where}: {name}"
        for name, secret in zip([*PLANTED, "tracking password, encoded", "AWS_SECRET_ACCESS_KEY"], secrets, strict=True)
        for where, content in [
            *((str(file), file.read_bytes()) for file in (*stored, *logs, *tracked)),
            *objects.items(),
            *((job, text.encode()) for job, text in printed.items()),
        ]
        if secret.encode() in content
    }
    assert leaks == set()
