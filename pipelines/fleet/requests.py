"""Requests as files: which are to do, whose turn it is, and what became of those that failed."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lookalike.config import parse, read_config_file
from lookalike.errors import ConfigError, LookalikeError
from lookalike.scratch import scratch
from lookalike.storage import Store
from pipelines.finetune import FinetuneConfig
from pipelines.fleet.config import FleetConfig

FAILED, LEASES = "failed", "leases"
_EXTENSIONS = (".yaml", ".yml", ".json")
_OF_OPERATOR = ("store", "model", "base", "distractors", "tracking", "workers", "actors", "isolated")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """A request that was read."""

    name: str
    """Of its file, without its extension."""
    sha256: str
    """Of the file: a changed file is a new request."""
    config: FinetuneConfig


@dataclass(frozen=True)
class Refused:
    """A file that is no request."""

    name: str
    sha256: str
    error: LookalikeError


def read_requests(folder: Store, fleet: FleetConfig, known: Iterable[str]) -> list[Request | Refused]:
    """Read the files that are directly in ``folder``, but those with a name in ``known``, in the order of their names.

    A file that failed before is read again once it has changed.
    """
    found: list[Request | Refused] = []
    skipped = set(known)
    for info in sorted(folder.list(), key=lambda info: info.key):
        path = PurePosixPath(info.key)
        if len(path.parts) > 1 or path.suffix.lower() not in _EXTENSIONS or path.name.startswith("."):
            continue
        if path.stem in skipped:
            continue
        skipped.add(path.stem)
        data = folder.read(info.key) if info.size <= _MAX_BYTES else b""
        sha256 = hashlib.sha256(data).hexdigest()
        if failure_of(folder, path.stem).get("request_sha256") == sha256:
            continue
        try:
            found.append(Request(path.stem, sha256, _parsed(data, folder.uri_of(info.key), fleet)))
        except LookalikeError as error:
            found.append(Refused(path.stem, sha256, error))
    return found


def in_turn(requests: Iterable[Request]) -> list[Request]:
    """Order requests so that customers take turns: the first of each customer, then the second of each, and so on."""
    numbers: dict[str, int] = defaultdict(int)
    keyed = []
    for request in requests:
        keyed.append((numbers[request.config.customer], request))
        numbers[request.config.customer] += 1
    return [request for _, request in sorted(keyed, key=lambda item: item[0])]


def failure_of(folder: Store, name: str) -> dict[str, Any]:
    """Return the record of a request that failed; {} if there is none."""
    key = f"{FAILED}/{name}.json"
    if not folder.exists(key):
        return {}
    try:
        return dict(json.loads(folder.read(key)))
    except (ValueError, TypeError):
        return {}


def record_failure(folder: Store, name: str, sha256: str, error: Exception) -> None:
    """Record why a request failed, so that it is not tried again until its file changes."""
    described = {"what": str(error)}
    if isinstance(error, LookalikeError):
        described = {"what": error.what, "value": str(error.value), "fix": str(error.fix)}
    record = {"request_sha256": sha256, "error": type(error).__name__, **described}
    folder.write(f"{FAILED}/{name}.json", json.dumps(record, indent=1).encode())


def _parsed(data: bytes, where: str, fleet: FleetConfig) -> FinetuneConfig:
    if not data:
        raise ConfigError("the request is empty, or too large", value=where, fix=f"keep it below {_MAX_BYTES} bytes")
    with scratch("request") as folder:
        file = Path(folder) / "request.yaml"
        file.write_bytes(data)
        settings = read_config_file(file)
        if theirs := sorted(settings.keys() & set(_OF_OPERATOR)):
            raise ConfigError(
                f"a request does not set {theirs[0]}, which the fleet sets for all",
                value=where,
                fix="remove it from the request",
            )
        flags = {
            "store": fleet.store,
            "model": fleet.model,
            "base": fleet.base,
            "distractors": fleet.distractors,
            "tracking": fleet.tracking,
            "workers.num_workers": "0",
            "workers.use_gpu": str(fleet.use_gpu).lower(),
            "workers.threads_per_worker": str(fleet.threads),
        }
        arguments = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        try:
            return parse(FinetuneConfig, ["--config", str(file), *arguments])
        except SystemExit as error:  # jsonargparse has printed why
            raise ConfigError(
                "the request has a setting that a finetune does not have, or lacks one",
                value=where,
                fix="compare it with jobs/finetune.py run --help; the message above names the setting",
            ) from error
