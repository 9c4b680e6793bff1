"""Requests as JSON lines: each a generation with an id and settings of its own. Lines are read one at a time."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.documents import parse_object
from lookalike.errors import ConfigError, InputError, LookalikeError, describe
from lookalike.redaction import redact
from lookalike.registry.names import validate_identifier
from lookalike.storage import locate_object, open_store, size_of
from pipelines.generate.config import GenerateConfig
from pipelines.generate.generation import Model

GENERATED, DONE, FAILED = "generated", "done before", "failed"
"""States of a request at the end."""
_OF_REQUEST = (
    *("model", "bundle", "base", "prompt", "reference", "num_images", "seed"),
    *("steps", "guidance_scale", "stages", "height", "width"),
)
_LISTS = ("prompt", "reference")
_MAX_LINE = 1 << 20  # bytes
_MARK = b"\xef\xbb\xbf"  # which some editors write at the beginning of a file


@dataclass(frozen=True)
class Request:
    """A line that was read."""

    name: str
    """Its id, which is the name of its folder."""
    line: int
    """From 1."""
    config: GenerateConfig
    """Its generation, as if it were a command's."""


@dataclass(frozen=True)
class Refused:
    """A line that is not a valid request."""

    name: str | None
    """Its id, if that is valid."""
    line: int
    error: LookalikeError


@dataclass(frozen=True)
class ResolvedRequest:
    """A request whose model was found."""

    request: Request
    model: Model

    @property
    def config(self) -> GenerateConfig:
        """Its generation."""
        return self.request.config

    @property
    def pass_settings(self) -> tuple[Any, ...]:
        """What must be equal for requests to share a pass of the model."""
        config = self.config
        settings = (config.steps, config.guidance_scale, config.stages, config.height, config.width)
        return (self.model.bundle.whole.sha256, *settings)


def result_row(request: Request | Refused, state: str, error: Exception | None = None) -> dict[str, Any]:
    """A line of ``results.jsonl``: of a request that failed with what is wrong, the value, and how to fix it."""
    row = {"id": request.name, "line": request.line, "state": state}
    if error is None:
        assert isinstance(request, Request)
        return {**row, "out": request.config.out}
    if isinstance(error, LookalikeError):
        return {**row, "what": error.what, "value": error.value, "fix": error.fix}
    return {**row, "what": redact(describe(error)), "value": None, "fix": "run the request alone to see more"}


class RequestFile:
    """The requests of ``config.requests``, which was copied to ``folder``: what is read later has not changed."""

    def __init__(self, config: GenerateConfig, folder: Path) -> None:
        """Copy the file and look for ids that several lines have.

        Raises InputError if it is missing, empty, or larger than ``config.max_requests_mib``.
        """
        assert config.requests is not None
        store, key = locate_object(config.requests)
        self._where, self._path = store.uri_of(key), folder / "requests.jsonl"
        if (size := size_of(store, key)) > config.max_requests_mib << 20:
            raise InputError(
                f"the file has {size} bytes, more than the {config.max_requests_mib} MiB that max_requests_mib allows",
                value=self._where,
                fix="divide it, or raise max_requests_mib",
            )
        store.download(key, self._path)
        self._out = open_store(config.out)
        self._config = config
        self._repeated = self._repeated_ids()

    def __len__(self) -> int:
        """Number of lines that are not blank."""
        return self._length

    def __iter__(self) -> Iterator[Request | Refused]:
        """Yield the requests in the order of their lines."""
        for line, data in self._lines():
            name = None
            try:
                values = self._parsed(line, data)
                name = _id_of(values)
                if (count := self._repeated.get(name, 1)) > 1:
                    raise InputError(f"{count} requests have this id", value=name, fix="give each an id of its own")
                yield Request(name, line, self._configured(name, values))
            except LookalikeError as error:
                yield Refused(name, line, error)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number and the bytes of each line that is not blank; of a line that is too long, its beginning."""
        with self._path.open("rb") as file:
            number = 0
            while data := file.readline(_MAX_LINE + 1):
                number += 1
                rest = data
                while not rest.endswith(b"\n") and rest:
                    rest = file.readline(_MAX_LINE)
                if number == 1:
                    data = data.removeprefix(_MARK)
                if data.strip():
                    yield number, data

    def _parsed(self, line: int, data: bytes) -> dict[str, Any]:
        where = f"{self._where}, line {line}"
        if len(data) > _MAX_LINE:
            raise InputError(f"the line has more than {_MAX_LINE} bytes", value=where, fix="shorten it")
        return parse_object(data, where, "id", fix='write one request per line, such as {"id": "mug-1", …}')

    def _configured(self, name: str, values: dict[str, Any]) -> GenerateConfig:
        """The settings of a request, and those of the command that it does not name."""
        settings = {key: value for key, value in values.items() if key != "id"}
        if unknown := sorted(settings.keys() - set(_OF_REQUEST)):
            raise ConfigError(
                "a request has no such setting", value=unknown[0], fix=f"use {', '.join(_OF_REQUEST)}, or the command's"
            )
        for key in _LISTS:
            if isinstance(settings.get(key), str):
                settings[key] = [settings[key]]
        return replace(self._config, **settings, requests=None, out=self._out.child(name).uri)

    def _repeated_ids(self) -> dict[str, int]:
        """Ids that several lines have, with their number. Of each id 8 bytes are in memory."""
        digests = np.fromiter((_digest(name) for name in self._ids()), np.uint64)
        self._length = sum(1 for _ in self._lines())
        if not self._length:
            raise InputError("the file has no request", value=self._where, fix="write one request per line")
        digests.sort()
        suspects = set(digests[:-1][digests[1:] == digests[:-1]].tolist())
        if not suspects:
            return {}
        counts = Counter(name for name in self._ids() if _digest(name) in suspects)
        return {name: count for name, count in counts.items() if count > 1}

    def _ids(self) -> Iterator[str]:
        """Yield the valid ids."""
        for line, data in self._lines():
            try:
                yield _id_of(self._parsed(line, data))
            except LookalikeError:
                continue


def _id_of(values: dict[str, Any]) -> str:
    return validate_identifier(values["id"], "id of a request")


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
