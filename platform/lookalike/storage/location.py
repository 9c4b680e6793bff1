"""The syntax of locations: what users and records may write, and the one spelling of a store's ``uri``.

| written | means |
|---|---|
| ``file:///path`` | a folder or file; ``%XX`` is a byte, the rest is literal (``#``, ``?``, blanks) |
| ``/path``, ``path``, ``~/path`` | the same, with every character literal (also ``%``); ``~`` is the user's home |
| ``s3://bucket/key`` | a literal key, as in the AWS CLI; ``//`` encloses an empty segment |

Schemes may be written in upper case, and ``localhost`` is the only host of a ``file:`` URI.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from lookalike.errors import ConfigError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(//)?")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_BUCKET = re.compile(r"[A-Za-z0-9.\-_]{1,255}")
_HOW = "use file:///path, a path, or s3://bucket/prefix"


def is_s3(location: str) -> bool:
    """Return whether ``location`` has the scheme ``s3``; the rest may be invalid."""
    match = _SCHEME.match(location)
    return match is not None and match[1].lower() == "s3"


def local_path(location: str) -> Path:
    """Return the absolute path of a plain path or a ``file:`` URI, without ``.`` and ``..``. It need not exist.

    Raises:
        ConfigError: the location is empty, has another scheme or host, or is a name that file systems do not allow.
    """
    scheme = _scheme(location)
    if scheme == "file":
        return _absolute(location, _decoded(location))
    if scheme == "" and location:
        return _absolute(location, location, home=True)
    raise ConfigError(
        "the location is neither a path nor a file: URI" if location else "the location is empty",
        value=location,
        fix=_HOW,
    )


def local_uri(path: Path) -> str:
    """Return ``file://`` and the absolute path, with bytes other than letters, digits and ``_.-~/`` as ``%XX``."""
    return f"file://{quote_from_bytes(os.fsencode(path), safe='/~')}"


def s3_parts(location: str) -> tuple[str, str]:
    """Return bucket and key of an S3 URI; the key is everything after the bucket's slash, and may be empty.

    Raises:
        ConfigError: no bucket, a bucket or key that S3 does not allow, or a key with a ``.`` or ``..`` segment, which
            clients and servers would change into another key.
    """
    match = _SCHEME.match(location)
    bucket, _, key = location[match.end() :].partition("/") if match and match[2] else ("", "", "")
    if not bucket:
        raise ConfigError("the S3 URI has no bucket", value=location, fix="write s3://bucket/prefix")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError("the S3 URI has an invalid bucket name", value=location, fix="write s3://bucket/prefix")
    if {".", ".."} & set(key.split("/")):
        raise ConfigError(
            "the S3 key has a '.' or '..' segment", value=location, fix="copy its objects to a key without one"
        )
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ConfigError("the S3 key is not valid UTF-8", value=location, fix="write it in UTF-8") from None
    return bucket, key


def _scheme(location: str) -> str:
    """``s3`` or ``file`` in lower case, or "" for a path. Raises ConfigError for another scheme or a Windows path."""
    if _DRIVE.match(location):
        raise ConfigError(
            "Windows paths are not supported",
            value=location,
            fix=f"use a path of this machine, or ./{location} for a folder of that name",
        )
    match = _SCHEME.match(location)
    if match is None:
        return ""
    scheme = match[1].lower()
    if scheme in ("s3", "file"):
        return scheme
    if match[2]:
        raise ConfigError(f"the scheme {match[1]}:// is not supported", value=location, fix=_HOW)
    return ""  # a name with a colon


def _decoded(location: str) -> str:
    rest = location[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            host = host.rpartition("@")[2]  # hides a user and password
            raise ConfigError(
                f"the file URI names the host {host!r}",
                value=location,
                fix=f"write file:///{f'{host}/{path}'.rstrip('/')} for an absolute path, ./{host} for a relative one",
            )
        rest = slash + path
    if not rest.startswith("/"):
        raise ConfigError("the file URI has no absolute path", value=location, fix="write file:///path")
    try:
        return os.fsdecode(unquote_to_bytes(os.fsencode(rest)))
    except UnicodeEncodeError:
        raise _no_name(location) from None


def _absolute(location: str, path: str, home: bool = False) -> Path:
    try:
        os.fsencode(path)
        if "\0" in path:
            raise _no_name(location)
        absolute = os.path.abspath if ".." not in path.split("/") else _without_parents
        if home and path.startswith("~"):
            path = str(Path(path).expanduser())
        return Path("/" + absolute(path).lstrip("/"))
    except UnicodeEncodeError:
        raise _no_name(location) from None
    except RuntimeError:  # of expanduser
        raise ConfigError(
            "the user does not exist", value=location, fix=f"write ./{location} for a folder of that name"
        ) from None
    except FileNotFoundError:  # of the current folder
        raise ConfigError(
            "the current folder was removed, so relative paths have no meaning",
            value=location,
            fix="write an absolute path",
        ) from None


def _without_parents(path: str) -> str:
    """``path`` as the file system resolves it: the part before a ``..`` may be a link."""
    segments = path.split("/")
    last = len(segments) - segments[::-1].index("..")
    return str(Path(os.path.realpath("/".join(segments[:last])), *segments[last:]))


def _no_name(location: str) -> ConfigError:
    return ConfigError("file names cannot hold NUL or lone surrogates", value=location, fix="use another name")
