"""The store on S3 by boto3. Endpoint, region and keys come from the environment (AWS_ENDPOINT_URL, AWS_*)."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
)

from lookalike.errors import ConfigError, ConflictError, InputError, UnreachableError
from lookalike.storage.store import ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

# Three tries of at most 5 s to connect: an endpoint that is down is named within 30 s.
_CLIENT_CONFIG = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3})
_MISSING = {"404", "NoSuchKey", "NotFound"}
_LOST_RACE = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


class S3Store:
    """Objects of one bucket below ``prefix``. Picklable: the client is made where it is used."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix

    def __reduce__(self) -> tuple[object, ...]:
        return (S3Store, (self.bucket, self.prefix))

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @cached_property
    def _client(self) -> "S3Client":
        return boto3.client("s3", config=_CLIENT_CONFIG)

    def child(self, prefix: str) -> "S3Store":
        return S3Store(self.bucket, self._key(prefix.strip("/")))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        base = f"{self.prefix}/" if self.prefix else ""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base + prefix)
        try:
            for page in pages:
                for item in page.get("Contents", []):
                    yield ObjectInfo(item["Key"][len(base) :], item["Size"], item["ETag"].strip('"'))
        except (ClientError, BotoCoreError) as error:
            self._fail(prefix, error)

    def exists(self, key: str) -> bool:
        try:
            self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                return False
            self._fail(key, error)
        except BotoCoreError as error:
            self._fail(key, error)
        return True

    def read(self, key: str) -> bytes:
        try:
            return self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"].read()
        except (ClientError, BotoCoreError) as error:
            self._fail(key, error)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        span = f"bytes={offset}-{offset + length - 1}"
        try:
            data = self._client.get_object(Bucket=self.bucket, Key=self._key(key), Range=span)["Body"].read()
        except (ClientError, BotoCoreError) as error:
            self._fail(key, error)
        if len(data) != length:
            raise InputError("object is shorter than its index says", value=f"{self.uri}/{key}", fix="index it again")
        return data

    def write(self, key: str, data: bytes) -> None:
        self._put(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._put(key, data, IfNoneMatch="*")

    def upload(self, key: str, path: Path) -> None:
        try:
            self._client.upload_file(str(path), self.bucket, self._key(key))
        except (ClientError, BotoCoreError, boto3.exceptions.S3UploadFailedError) as error:
            self._fail(key, error)

    def download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client.download_file(self.bucket, self._key(key), str(path))
        except (ClientError, BotoCoreError) as error:
            self._fail(key, error)

    def delete(self, key: str) -> None:
        try:
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))
        except (ClientError, BotoCoreError) as error:
            self._fail(key, error)

    def _put(self, key: str, data: bytes, **conditions: Any) -> None:
        try:
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **conditions)
        except (ClientError, BotoCoreError) as error:
            self._fail(key, error)

    def _key(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/"):
            raise ConfigError("a key leaves its store", value=key, fix="use a relative key without '..'")
        return f"{self.prefix}/{key}" if self.prefix else key

    def _fail(self, key: str, error: Exception) -> NoReturn:
        where = f"{self.uri}/{key}"
        endpoint = self._client.meta.endpoint_url
        if isinstance(error, ClientError):
            code = error.response["Error"]["Code"]
            if code == "NoSuchBucket":
                raise InputError("no such bucket", value=self.bucket, fix=f"create it at {endpoint}") from error
            if code in _MISSING:
                raise InputError("no such object", value=where, fix="check the location") from error
            if code in _LOST_RACE:
                raise ConflictError("the object exists already", value=where, fix="choose another location") from error
            raise UnreachableError(
                f"S3 refused at {endpoint}: {code}", value=where, fix="check AWS_ACCESS_KEY_ID and the bucket's policy"
            ) from error
        if isinstance(error, NoCredentialsError):
            raise UnreachableError(
                "no S3 credentials", value=where, fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        if isinstance(error, (ConnectionError, HTTPClientError)):
            raise UnreachableError(
                f"S3 does not answer at {endpoint}", value=where, fix="check AWS_ENDPOINT_URL and the network"
            ) from error
        raise UnreachableError(f"S3 failed at {endpoint}: {error}", value=where, fix="try again") from error
