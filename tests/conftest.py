"""Fixtures for servers: services of the local stack, started by its command when a test first needs one."""

import os
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml

REPO = Path(__file__).resolve().parents[1]
_STACK = REPO / "infra" / "local" / "stack.py"
os.environ["HF_HUB_OFFLINE"] = "1"  # read at import; a name that is no folder is otherwise looked up for 25 s
_REMEMBERED = (
    ("lookalike.evaluation.calibration", "_JUDGES"),
    ("lookalike.evaluation.metrics.embedders", "_LOADED"),
    ("lookalike.bundles.manifest", "_PRESETS"),
)
_CLIENT_VARIABLES = ("AWS_", "MLFLOW_TRACKING", "RAY_ADDRESS", "RAY_API_SERVER", "RAY_AUTH")


@pytest.fixture(scope="session", autouse=True)
def ray_token() -> Iterator[dict[str, str]]:
    """Clusters that this test process starts require a token of its own. The environment for a job that joins one;
    others make theirs."""
    from pipelines.private_ray import MODE, TOKEN_PATH, fresh_token

    with fresh_token():
        yield {name: os.environ[name] for name in (MODE, TOKEN_PATH) if name in os.environ}


@pytest.fixture(scope="module", autouse=True)
def nothing_remembered() -> None:
    """A file of tests begins without what earlier ones left in the process."""
    for module, name in _REMEMBERED:
        if module in sys.modules:
            getattr(sys.modules[module], name).clear()


@dataclass(frozen=True)
class LocalStack:
    """A stack in ``folder``; ``up`` adds services to it, ``environment`` is what its env file exports."""

    folder: Path

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``stack.py`` on this folder, as a user does."""
        argv = [sys.executable, str(_STACK), *arguments, "--state", str(self.folder)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=180)

    def up(self, *services: str) -> None:
        """Start those of ``services`` that do not run."""
        done = self.command("up", "--services", ",".join(services), "--num-cpus", "4", "--object-store-mib", "512")
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        """Stop the services that were started."""
        done = self.command("down")
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        """Addresses and keys of the services."""
        words = shlex.split((self.folder / "env").read_text())
        return dict(word.split("=", 1) for word in words if word != "export")


@pytest.fixture(scope="session")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """The stack of the session, with no service running."""
    stack = LocalStack(tmp_path_factory.mktemp("stack"))
    yield stack
    stack.down()


@pytest.fixture(scope="session")
def s3_server(local_stack: LocalStack) -> dict[str, str]:
    """Start a real S3 server, and return the environment for its clients."""
    local_stack.up("s3")
    return {name: value for name, value in local_stack.environment.items() if name.startswith("AWS_")}


@pytest.fixture
def s3_uri(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty ``s3://`` prefix for this test; the environment is set."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    return f"s3://scratch/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def mlflow_server(local_stack: LocalStack) -> Iterator[str]:
    """The tracking URI of a real MLflow server; its password is in the environment."""
    local_stack.up("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, local_stack.environment[name])
        yield local_stack.environment["MLFLOW_TRACKING_URI"]


@pytest.fixture
def mlflow_user(mlflow_server: str) -> Callable[..., None]:
    """``mlflow_user("mia", "a password", admin=False)``: add a user to the MLflow server, by default an administrator.

    Others have no permission by default: MLflow answers 403 for models that they did not create, or that do not exist.
    """

    def create(name: str, password: str, admin: bool = True) -> None:
        creator = (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"])
        for method, path, body in (
            ("POST", "create", {"username": name, "password": password}),
            ("PATCH", "update-admin", {"username": name, "is_admin": admin}),
        ):
            uri = f"{mlflow_server}/api/2.0/mlflow/users/{path}"
            requests.request(method, uri, json=body, auth=creator, timeout=30).raise_for_status()

    return create


@pytest.fixture(scope="session")
def mlflow_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database to copy, since creating its schema takes seconds."""
    from lookalike.tracking.connection import connect

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def mlflow_database(mlflow_schema: Path, tmp_path: Path) -> str:
    """The tracking URI of an empty MLflow database for this test."""
    path = tmp_path / "tracking" / "mlflow.db"
    path.parent.mkdir()
    shutil.copyfile(mlflow_schema, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def ray_cluster(local_stack: LocalStack) -> dict[str, str]:
    """A Ray head with jobs, S3 and MLflow: the environment in which a user submits and runs jobs against it."""
    local_stack.up("s3", "mlflow", "ray")
    return local_stack.environment


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A private Ray inside the test process, with four logical CPUs."""
    import ray

    from pipelines.entry import patient

    start = patient(ray.init)
    start(address="local", num_cpus=4, include_dashboard=False, object_store_memory=512 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def run_job() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run_job("curate", "--raw", ..., env={...})``: run a job in a new process, as a user does."""

    def run(
        name: str, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None, timeout_s: float = 900
    ) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(REPO / "jobs" / f"{name}.py"), *arguments]
        return subprocess.run(
            argv, env=job_environment(env or {}), cwd=cwd or REPO, capture_output=True, text=True, timeout=timeout_s
        )

    return run


def job_environment(changes: dict[str, str]) -> dict[str, str]:
    """This process's environment without addresses of services, and with ``changes``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CLIENT_VARIABLES)}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


@pytest.fixture
def mllm_lora_preset(tmp_path: Path) -> Callable[..., str]:
    """``mllm_lora_preset(rank=2, ...)``: a file with the preset `mini`, whose MLLM learns a LoRA."""

    def write(**lora: object) -> str:
        values = yaml.safe_load((REPO / "platform/lookalike/models/presets/mini.yaml").read_text())
        values["mllm"]["lora"] = lora
        file = tmp_path / "preset.yaml"
        file.write_text(yaml.safe_dump(values))
        return str(file)

    return write
