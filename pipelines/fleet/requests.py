"""Requests as files: what one may set, and the configuration of its finetune."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.config import parse, read_config_file
from lookalike.errors import ConfigError, LookalikeError
from lookalike.scratch import scratch
from lookalike.storage import ObjectInfo, Store
from pipelines.finetune import FinetuneConfig
from pipelines.fleet.config import FleetConfig
from pipelines.fleet.records import tag_of
from pipelines.fleet.turns import Ticket

MOST_BYTES = 1 << 20
_PRIORITY, _MOST_PRIORITY = "priority", 1000
_OF_OPERATOR = ("store", "model", "base", "distractors", "tracking", "workers", "actors", "isolated")


@dataclass(frozen=True)
class Request:
    """A file that was read, and whose turn will come."""

    ticket: Ticket
    where: str
    """URI of the file."""
    sha256: str
    """Of the file."""
    tag: str
    """Of its version in the store."""
    settings: dict[str, Any]
    """Of its finetune, as they were written."""


@dataclass(frozen=True)
class Refused:
    """A file that is no request."""

    name: str
    sha256: str
    error: LookalikeError


def read_request(folder: Store, info: ObjectInfo, name: str) -> Request | Refused:
    """Read the file ``info`` in ``folder``; its settings are checked when its turn comes (:func:`config_of`)."""
    data = folder.read(info.key) if info.size <= MOST_BYTES else b""
    sha256, where = hashlib.sha256(data).hexdigest(), folder.uri_of(info.key)
    try:
        settings = _settings(data, where)
        priority = settings.pop(_PRIORITY, 0)
        if type(priority) is not int or abs(priority) > _MOST_PRIORITY:
            fix = f"use a whole number, from -{_MOST_PRIORITY} to {_MOST_PRIORITY}; higher ones come first"
            raise ConfigError("the priority of a request is not valid", value=priority, fix=fix)
        who = [settings.get(name) for name in ("customer", "subject")]
        if not all(isinstance(each, str) for each in who):
            raise ConfigError("the request names no customer, or no subject", value=where, fix="name both, as text")
    except LookalikeError as error:
        return Refused(name, sha256, error)
    ticket = Ticket(name, str(who[0]), str(who[1]), priority, info.modified)
    return Request(ticket, where, sha256, tag_of(info.etag), settings)


def config_of(request: Request, fleet: FleetConfig) -> FinetuneConfig:
    """The finetune of a request. Raises ConfigError for a setting that is not valid."""
    with scratch("request") as folder:
        file = Path(folder) / "request.yaml"
        file.write_bytes(_yaml(request.settings))
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
                value=request.where,
                fix="compare it with jobs/finetune.py run --help; the message above names the setting",
            ) from error


def _settings(data: bytes, where: str) -> dict[str, Any]:
    if not data:
        raise ConfigError("the request is empty, or too large", value=where, fix=f"keep it below {MOST_BYTES} bytes")
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
    return settings


def _yaml(settings: dict[str, Any]) -> bytes:
    import yaml

    return yaml.safe_dump(settings).encode()
