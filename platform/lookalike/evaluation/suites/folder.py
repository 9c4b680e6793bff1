"""A suite's folder as its reader sees it: the photos by key, and text files on demand. Knows no storage."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lookalike.errors import InputError
from lookalike.evaluation.suites.samples import Photo, distinct

_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")
MOST_PROMPTS = 100_000
"""Prompts of a suite's folder, and photos."""


@dataclass(frozen=True)
class Folder:
    """The files of a suite that is a folder."""

    uri: str
    photos: Mapping[str, Photo]
    """Each photo by its key below ``uri``, in the order of keys."""
    texts: frozenset[str]
    """Keys of the other files."""
    read: Callable[[str], str]
    """Read a text file by its key: UTF-8, or another Unicode encoding by its byte-order mark."""

    def where(self, key: str) -> str:
        """The location of a file, for messages."""
        return f"{self.uri.rstrip('/')}/{key}"

    def error(self, what: str, key: str, fix: str) -> InputError:
        """An error about a file of this suite."""
        return InputError(f"the suite is not usable: {what}", value=self.where(key), fix=fix)

    def inside(self, prefix: str) -> tuple[Photo, ...]:
        """The photos directly below ``prefix`` (which ends with a slash), each content once."""
        return distinct(
            photo for key, photo in self.photos.items() if key.startswith(prefix) and "/" not in key[len(prefix) :]
        )


def is_name(text: str) -> bool:
    """Return whether ``text`` can be the name of a subject: one segment of a key, without control characters."""
    return bool(_NAME.fullmatch(text)) and text.strip(". ") != "" and text == text.strip()


def by_folder(photos: Iterable[tuple[str, Photo]]) -> dict[str, tuple[Photo, ...]]:
    """Group photos by the folder of their keys, each content once."""
    groups: dict[str, list[Photo]] = {}
    for key, photo in photos:
        groups.setdefault(key.rpartition("/")[0], []).append(photo)
    return {folder: distinct(group) for folder, group in groups.items()}
