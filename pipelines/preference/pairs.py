"""``pairs.json``, the key of a page: which models, or which right answer, are behind each pair of images."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, zip_longest
from typing import Any, Literal

from pydantic import ConfigDict

from lookalike.config import fingerprint
from lookalike.errors import InputError
from lookalike.storage import locate_object, open_store, read_members
from lookalike.storage.claim import RUN, read_result

PAGE = "preference.html"
PAIRS = "pairs.json"
_FIX = "name the pairs.json that jobs/preference.py make wrote beside the page"


@dataclass(frozen=True)
class Pair:
    """Two images on the page, ``first`` and ``second``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    """Id on the page; it has no meaning there."""
    kind: Literal["models", "repeat", "check"]
    """Images of two models; the same again, with sides swapped; or an attention check with real photos."""
    case: str
    """Id of the case whose references and prompt are shown."""
    subject: str
    """Subject of the case."""
    first: str
    """Name of the model; in a check ``subject`` or ``other``, whose photo it is."""
    second: str
    """As ``first``."""
    repeats: str = ""
    """Id of the pair that a repeat shows again."""
    values: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Metric -> its value of the first and of the second image."""


@dataclass(frozen=True)
class Key:
    """The content of ``pairs.json``."""

    page: str
    """Id of the page, which its exports carry."""
    criteria: list[str]
    models: dict[str, dict[str, Any]]
    """Name -> evaluation, bundle and its hash."""
    pairs: dict[str, Pair]
    """By id."""


def choose_pairs(
    subjects: Mapping[str, str], models: Sequence[str], most: int, seed: int
) -> list[tuple[str, str, str]]:
    """Choose up to ``most`` pairs (case, model, model); ``subjects`` has the subject of each case.

    They take turns between subjects, and each subject's cases take turns between the pairs of models, so that any
    number of pairs is spread evenly over both. No pair is chosen twice.
    """
    by_subject: dict[str, list[str]] = defaultdict(list)
    for case in sorted(subjects, key=lambda case: fingerprint([seed, "case", case])):
        by_subject[subjects[case]].append(case)
    order = sorted(by_subject, key=lambda subject: fingerprint([seed, "subject", subject]))
    turns = list(combinations(models, 2))
    chosen: list[tuple[str, str, str]] = []
    for lap in range(len(turns)):
        for rank, row in enumerate(zip_longest(*(by_subject[subject] for subject in order))):
            for number, case in enumerate(row):
                if len(chosen) == most:
                    return chosen
                if case is not None:
                    chosen.append((case, *turns[(number + rank + lap) % len(turns)]))
    return chosen


def coin(*identity: object) -> bool:
    """A fair coin that depends on ``identity`` alone."""
    return int(fingerprint([str(part) for part in identity])[0], 16) % 2 == 0


def read_key(uri: str) -> Key:
    """Read the key of a page. Raises InputError if it is missing, is another file, or was changed."""
    store, name = locate_object(uri) if uri.endswith(".json") else (open_store(uri), PAIRS)
    types: dict[str, Any] = {
        **{"page": str, "criteria": list[str], "models": dict[str, dict[str, Any]]},
        **{"pairs": list[Pair], RUN: str},
    }
    where = store.uri_of(name)
    if not store.exists(name):
        raise InputError("the key of the page is missing", value=where, fix=_FIX)
    run = read_members(store, name, types, fix=_FIX)[RUN]  # its claim may lie elsewhere: the seal is what counts
    result, sealed = read_result(store, name, run, types)
    pairs = [
        Pair(**{**row, "values": {metric: tuple(two) for metric, two in row["values"].items()}})
        for row in result["pairs"]
    ]
    if not sealed or len({pair.id for pair in pairs}) < len(pairs):
        raise InputError("the key has no seal, or a pair twice", value=where, fix=_FIX)
    return Key(result["page"], result["criteria"], result["models"], {pair.id: pair for pair in pairs})
