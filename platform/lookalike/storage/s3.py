"""The store on S3, by boto3. Endpoint, region and keys come from the environment (AWS_ENDPOINT_URL, AWS_*)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from tenacity import retry, retry_if_exception_type, wait_exponential

from lookalike.errors import ConfigError, ConflictError, InputError, RefusedError, UnreachableError
from lookalike.storage.base import ObjectInfo, Store, check_key

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

ATTEMPTS = "AWS_MAX_ATTEMPTS"
"""Environment variable of the AWS tools: attempts of a request before it fails, 1 to 100."""
_ATTEMPTS, _MOST_ATTEMPTS = 8, 100  # 8 take up to a minute, in which S3 splits a prefix that it throttles
_CONNECTIONS = 32  # of a process: its readers are up to 16 threads, twice if two of them work at once
# The first request of a process only checks that the endpoint answers: two tries of at most 10 s, so that an endpoint
# that is down, or accepts connections without answering, is reported within 30 s.
_PROBE_CONFIG = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2})
_VARIABLES = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION"),
    ATTEMPTS,
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
)
_HEAD_MISSING = {"404", "NotFound"}  # the answer to a HEAD has no body that says what is missing
_MISSING = {*_HEAD_MISSING, "NoSuchKey"}
_LOST_RACE = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_DENIED = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_THROTTLED = {"503", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
# botocore does not retry while a body is read
_BROKEN_STREAM = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)


@dataclass(frozen=True)
class S3Store:
    """Objects of one bucket below ``prefix``. Picklable: each process makes its own client.

    ``prefix`` precedes every key literally: it is empty, or ends with a slash (which is added). Segments may be empty:
    ``s3://bucket//x``, ``s3://bucket/x//`` and ``s3://bucket/x`` are three different prefixes.
    """

    bucket: str
    prefix: str

    def __post_init__(self) -> None:
        if self.prefix and not self.prefix.endswith("/"):
            object.__setattr__(self, "prefix", f"{self.prefix}/")

    @property
    def uri(self) -> str:
        shown = self.prefix if self.prefix.endswith("//") or self.prefix == "/" else self.prefix[:-1]
        return f"s3://{self.bucket}/{shown}" if shown else f"s3://{self.bucket}"

    @property
    def name(self) -> str:
        return self.prefix[:-1].rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "S3Store":
        if not self.prefix:
            raise ConfigError("a bucket has no parent", value=self.uri, fix="name a prefix in the bucket")
        above, slash, _ = self.prefix[:-1].rpartition("/")
        return S3Store(self.bucket, above + slash)

    def uri_of(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def prefix_in(self, outer: Store) -> str | None:
        if not isinstance(outer, S3Store) or outer.bucket != self.bucket or not self.prefix.startswith(outer.prefix):
            return None
        return self.prefix[len(outer.prefix) :]

    def child(self, prefix: str) -> "S3Store":
        return S3Store(self.bucket, self._key(prefix.strip("/")))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        start = self.prefix + prefix
        found = []
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            for page in pages:
                for item in page.get("Contents", []):
                    key = item["Key"][len(self.prefix) :]
                    written = item["LastModified"].timestamp()
                    found.append(ObjectInfo(key, item["Size"], item["ETag"].strip('"'), written))
        except (ClientError, BotoCoreError) as error:
            self._fail(prefix, error)
        # Some servers do not sort by key: SeaweedFS lists folder by folder, AWS's directory buckets in any order.
        yield from sorted(found, key=lambda info: info.key)

    def exists(self, key: str) -> bool:
        try:
            self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        except (ClientError, BotoCoreError) as error:
            if _code(error) in _HEAD_MISSING and self._has_bucket():
                return False
            self._fail(key, error)
        return True

    def read(self, key: str) -> bytes:
        return self._call(key, lambda: self._get(key))

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        span = f"bytes={offset}-{offset + length - 1}"
        try:
            data = self._get(key, Range=span) if min(offset, length) > -1 else b""  # S3 ignores an invalid range
        except (ClientError, BotoCoreError) as error:
            if _code(error) != "InvalidRange":
                self._fail(key, error)
            data = b""
        if len(data) != length:
            raise InputError(
                "the object is shorter than its index entry says", value=self.uri_of(key), fix="index it again"
            )
        return data

    def write(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data))

    def create(self, key: str, data: bytes) -> None:
        try:
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
        except (ClientError, BotoCoreError) as error:
            # botocore repeats a put whose answer was lost; the second put then conflicts with the object of the first.
            if not (_code(error) in _LOST_RACE and _was_repeated(error) and self.read(key) == data):
                self._fail(key, error)

    def upload(self, key: str, path: Path) -> None:
        self._call(key, lambda: self._client.upload_file(str(path), self.bucket, self._key(key)))

    def download(self, key: str, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._call(key, lambda: self._client.download_file(self.bucket, self._key(key), str(path)))
        except OSError as error:
            raise InputError(
                f"cannot write: {error.strerror or error}", value=str(path), fix="free some space, or set TMPDIR"
            ) from error

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._client.delete_object(Bucket=self.bucket, Key=self._key(key)))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of requests through :attr:`client` into ours, which name the prefix."""
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error) as error:
            self._fail("", error)

    @property
    def client(self) -> "S3Client":
        """The client of this process, for requests that a :class:`Store` has no method for; inside :meth:`errors`."""
        return self._client

    @property
    def _client(self) -> "S3Client":
        try:
            return _client(os.getpid(), _identity())
        except ConfigError:
            raise
        except (ClientError, BotoCoreError, ValueError) as error:
            self._fail("", error)

    @retry(
        retry=retry_if_exception_type(_BROKEN_STREAM),
        stop=lambda state: state.attempt_number >= _attempts(),
        wait=wait_exponential(multiplier=0.2, max=2),
        reraise=True,
    )
    def _get(self, key: str, **options: Any) -> bytes:
        return self._client.get_object(Bucket=self.bucket, Key=self._key(key), **options)["Body"].read()

    def _has_bucket(self) -> bool:
        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            return _code(error) not in {*_MISSING, "NoSuchBucket"}
        except BotoCoreError as error:
            self._fail("", error)
        return True

    def _key(self, key: str) -> str:
        check_key(key, key)
        return self.prefix + key

    def _call(self, key: str, request: Callable[[], T]) -> T:
        try:
            return request()
        except (ClientError, BotoCoreError, Boto3Error) as error:
            self._fail(key, error)

    def _fail(self, key: str, error: BaseException) -> NoReturn:
        if isinstance(error, Boto3Error) and error.__context__ is not None:
            error = error.__context__  # the cause of a failed transfer
        where = self.uri_of(key) if key else self.uri
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        code = _code(error)
        if code == "NoSuchBucket" or (code in _HEAD_MISSING and not self._has_bucket()):
            raise InputError("the bucket does not exist", value=self.bucket, fix=f"create it at {endpoint}") from error
        if code in _MISSING:
            raise InputError("no such object", value=where, fix="check the location") from error
        if code in _LOST_RACE:
            raise ConflictError("the object exists already", value=where, fix="choose another location") from error
        if code in _DENIED:
            fix = "check AWS_ACCESS_KEY_ID and the bucket's policy"
            raise RefusedError(f"S3 at {endpoint} refused the request: {code}", value=where, fix=fix) from error
        what, fix = f"S3 at {endpoint} failed: {error}", "run the same command again"
        if code in _THROTTLED:
            what = f"S3 at {endpoint} still throttles the requests after {_attempts()} attempts ({code})"
            fix = f"run the same command again, with fewer workers or a larger {ATTEMPTS}"
        elif isinstance(error, NoCredentialsError):
            what, fix = "there are no S3 credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        elif isinstance(error, (ConnectionError, HTTPClientError)):
            what, fix = f"S3 at {endpoint} does not answer", "check AWS_ENDPOINT_URL and the network"
        raise UnreachableError(what, value=where, fix=fix) from error


def _check_endpoint() -> None:
    """Refuse an endpoint with a user or password: S3 clients do not send them, and botocore's errors show them."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if "@" in (endpoint := os.environ.get(name, "")).partition("://")[2].partition("/")[0]:
            raise ConfigError(
                f"{name} holds a user or a password, which S3 clients ignore",
                value=endpoint,
                fix="remove it, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )


def _attempts() -> int:
    """Return how often a request is made before it fails. Raises ConfigError for a value that is not a number."""
    written = os.environ.get(ATTEMPTS) or str(_ATTEMPTS)
    if not (written.isdecimal() and 1 <= int(written) <= _MOST_ATTEMPTS):
        raise ConfigError(f"{ATTEMPTS} is not a number from 1 to {_MOST_ATTEMPTS}", value=written, fix="correct it")
    return int(written)


def _client_config() -> Config:
    """All threads of a process share a rate of requests, which falls while S3 throttles (mode ``adaptive``).

    120 requests of 16 threads at a server of 20 a second: 9 throttled in 19 s; in mode ``standard`` 90 in 23 s.
    """
    return Config(
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=_CONNECTIONS,
        retries={"mode": "adaptive", "total_max_attempts": _attempts()},
    )


def _identity() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in _VARIABLES)


@lru_cache(maxsize=4)
def _client(process: int, identity: tuple[str | None, ...]) -> "S3Client":
    """One client for all stores of a process and one environment. Threads can share it, forked processes cannot."""
    _check_endpoint()
    session = boto3.Session()  # boto3's default session would keep the keys of its first use
    with suppress(ClientError):  # an error code is an answer too
        session.client("s3", config=_PROBE_CONFIG).list_buckets()
    return session.client("s3", config=_client_config())


def _code(error: BaseException) -> str:
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else ""


def _was_repeated(error: Exception) -> bool:
    return isinstance(error, ClientError) and int(error.response["ResponseMetadata"].get("RetryAttempts", 0)) > 0
