"""Jobs check at their start that their credentials reach one customer's prefix only, on a server with policies."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.errors import ConfigError, RefusedError
from lookalike.storage import open_store
from lookalike.storage.isolation import check_isolation
from pipelines.finetune import FinetuneConfig, finetune
from tests.conftest import LocalStack

_SECRET = uuid.uuid4().hex
_ACTIONS = ("Read", "Write", "List", "Tagging")
# one identity for each set of permissions
_ALLOWED = {
    "right": [f"{action}:scratch/store/customers/acme/*" for action in _ACTIONS],
    "no-slash": [f"{action}:scratch/store/customers/acme*" for action in _ACTIONS],
    "all-customers": [f"{action}:scratch/store/customers/*" for action in _ACTIONS],
    "bucket": [f"{action}:scratch" for action in _ACTIONS],
    "reads-all": ["Read:scratch", *(f"{action}:scratch/store/customers/acme/*" for action in _ACTIONS)],
    "lists-all": ["List:scratch", *(f"{action}:scratch/store/customers/acme/*" for action in _ACTIONS)],
    "another": [f"{action}:scratch/store/customers/evil/*" for action in _ACTIONS],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of the administrator of an S3 server that has these identities besides."""
    stack = LocalStack(tmp_path_factory.mktemp("isolation"))
    stack.up("s3")
    stack.down()
    file = stack.folder / "s3.json"
    settings = json.loads(file.read_text())
    settings["identities"] += [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": _SECRET}], "actions": actions}
        for name, actions in _ALLOWED.items()
    ]
    file.write_text(json.dumps(settings))
    stack.up("s3")
    yield {name: value for name, value in stack.environment.items() if name.startswith("AWS_")}
    stack.down()


def _as(name: str, server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (server | {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": _SECRET}).items():
        monkeypatch.setenv(variable, value)


@pytest.mark.parametrize("name", _ALLOWED)
def test_only_credentials_of_one_prefix_pass(
    name: str, server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _as(name, server, monkeypatch)
    root = open_store("s3://scratch/store")
    home = root.child("customers").child("acme")
    if name == "right":
        check_isolation(root, home)
    else:
        with pytest.raises(RefusedError if name == "another" else ConfigError) as refused:
            check_isolation(root, home)
        assert name == "another" or "outside of s3://scratch/store/customers/acme" in str(refused.value)
    for variable, value in server.items():
        monkeypatch.setenv(variable, value)
    assert [info.key for info in root.list() if "isolation-" in info.key and info.size == 0 and "." in info.key] == []


def test_a_finetune_that_is_not_isolated_does_not_start(
    server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _as("bucket", server, monkeypatch)
    config = FinetuneConfig(
        customer="acme",
        subject="mug",
        photos=str(tmp_path),
        store="s3://scratch/store",
        model=str(tmp_path),
        tracking="none:",
        isolated=True,
    )
    with pytest.raises(ConfigError, match="can write outside"):
        finetune(config)


def test_files_cannot_be_isolated(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    with pytest.raises(ConfigError, match="on S3 only"):
        check_isolation(root, root.child("customers").child("acme"))
