"""Find and read the suite that a URI names: a curated data set, or a folder in one of the published formats."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from lookalike import config as configs
from lookalike.data.images import EXTENSIONS
from lookalike.data.text import MAX_TEXT_BYTES, decode_text
from lookalike.data.triplets import Split, each_triplet
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.scores import Scores, Source
from lookalike.evaluation.suites import (
    FORMATS,
    MOST_PROMPTS,
    Contents,
    Folder,
    Photo,
    Sample,
    Suite,
    chosen_rows,
    samples_of,
    with_class_prompts,
)
from lookalike.storage import (
    Store,
    latest_version,
    list_versions,
    locate_object,
    open_store,
    read_at_most,
    read_manifest,
    version_store,
)
from lookalike.storage.store import sha256_of
from pipelines.evaluate.config import CURATED, EvaluateConfig

TRIPLETS = 65_536  # of a split, from which a suite is made; about 1.6 kB each
_AT_ONCE = 16  # files that are hashed
_TEXTS = (".txt", ".yaml", ".yml", ".json")


@dataclass(frozen=True)
class SuiteSource:
    """Where a suite is, pinned by its content."""

    source: Source
    format: str
    """``curated``, or a name in ``FORMATS``."""
    contents: Contents | None = None
    """What a folder holds; a curated data set is read when it is needed."""


def find_suite(config: EvaluateConfig) -> SuiteSource:
    """Find the suite at ``config.suite``, and read it if it is a folder.

    Raises InputError that names the file: the suite is missing or not complete.
    """
    listed = PurePosixPath(config.suite).suffix in (".yaml", ".yml", ".json")
    if config.suite_format == CURATED or (not listed and list_versions(open_store(config.suite))):
        return SuiteSource(snapshot(config.suite), CURATED)
    store, named = locate_object(config.suite) if listed else (open_store(config.suite), None)
    folder, texts = _folder(store, named)
    name, marker = _format(folder, config, named)
    contents = FORMATS[name].read(folder, marker)
    if config.split != "validation":
        what = f"a suite in the format {name} has no split {config.split!r}"
        raise ConfigError(what, value=config.suite, fix="leave split out")
    if config.prompts == "dreambench":
        what = f"a suite in the format {name} has prompts of its own, which prompts=dreambench would replace"
        raise ConfigError(what, value=config.suite, fix="leave prompts out, or name a curated data set")
    content = [name, *sorted(texts.items()), *sorted((photo.key, photo.sha256) for photo in _photos_of(contents))]
    return SuiteSource(Source(config.suite if listed else store.uri, configs.fingerprint(content)), name, contents)


def read_suite(scores: Scores) -> Suite:
    """Read the suite of a finished evaluation again, without distractors: a curated data set by its version.

    Raises InputError: it is missing, or its content has changed since.
    """
    known = {item.name for item in fields(EvaluateConfig)} - {"actors"}
    settings = {name: value for name, value in scores.config.items() if name in known}
    config = EvaluateConfig(**{**settings, "suite": scores.suite.uri, "bundle": scores.bundle.uri, "out": "unused"})
    if scores.suite.version is not None:
        return suite_of(config, SuiteSource(scores.suite, CURATED))
    found = find_suite(config)
    if found.source.sha256 != scores.suite.sha256 or found.contents is None:
        fix = "restore it, or evaluate the bundles again"
        raise InputError("the suite has changed since the evaluation", value=scores.suite.uri, fix=fix)
    return suite_of(config, found)


def suite_of(config: EvaluateConfig, found: SuiteSource, distractors: Sequence[Sample] = ()) -> Suite:
    """Read the samples of a suite that was found, with the prompts that ``config`` asks for."""
    contents = found.contents or Contents(samples_in(found.source, config.split, config))
    prompted = with_class_prompts(contents.samples, config.subjects) if config.prompts == "dreambench" else ()
    return Suite(contents.samples, distractors, config.seed, contents.photos, prompted)


def snapshot(uri: str) -> Source:
    """Return the newest snapshot of a curated data set. Raises InputError if there is none."""
    dataset = open_store(uri)
    version = latest_version(dataset)
    return Source(dataset.uri, configs.fingerprint(read_manifest(dataset, version)), version)


def samples_in(source: Source, split: Split | None, config: EvaluateConfig) -> list[Sample]:
    """Read the samples of a snapshot; of a split with many triplets some are chosen (``chosen_rows``)."""

    def choose(rows: int) -> npt.NDArray[np.int64]:
        return chosen_rows(rows, max(TRIPLETS, config.max_samples), config.seed)

    version = version_store(open_store(source.uri), source.version or 0)
    return samples_of(each_triplet(version, split, source.sha256, choose), version.uri)


def _photos_of(contents: Contents) -> Iterable[Photo]:
    return {photo for photos in contents.photos.values() for photo in photos}


def _format(folder: Folder, config: EvaluateConfig, named: str | None) -> tuple[str, str]:
    """Return the name of the folder's format, and its marker."""
    if named is not None and config.suite_format in (None, "prompts"):
        return "prompts", named
    formats = FORMATS if config.suite_format is None else {config.suite_format: FORMATS[config.suite_format]}
    for name, each in formats.items():
        marker = each.marker(folder)
        if marker is not None:
            return name, marker
    needed = "; ".join(f"{name} needs {each.needs}" for name, each in formats.items())
    what = "the location has no complete snapshot" if config.suite_format is None else "the suite is not usable"
    raise InputError(
        f"{what}, and no suite in a folder ({needed})",
        value=config.suite,
        fix="name a data set that jobs/curate.py finished, or the folder of a suite",
    )


def _folder(store: Store, named: str | None) -> tuple[Folder, dict[str, str]]:
    """List and hash the photos of a folder; also return the hash of each text file that is read, by its key."""
    infos = list(islice((info for info in store.list() if "/." not in f"/{info.key}"), 2 * MOST_PROMPTS + 1))
    if len(infos) > 2 * MOST_PROMPTS:
        what = f"the folder has more than {2 * MOST_PROMPTS} files, too many for a suite"
        raise InputError(what, value=store.uri, fix="name the suite's own folder")
    keys = [info for info in infos if PurePosixPath(info.key).suffix[1:].lower() in EXTENSIONS]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        hashes = list(pool.map(lambda info: sha256_of(store, info.key, info.size), keys))
    photos = {info.key: Photo(info.key, store.uri, info.key, sha256) for info, sha256 in zip(keys, hashes, strict=True)}
    texts = frozenset(info.key for info in infos if info.key.lower().endswith(_TEXTS)) | frozenset(
        [named] if named else []
    )
    read: dict[str, str] = {}

    def read_text(key: str) -> str:
        data = read_at_most(store, key, MAX_TEXT_BYTES >> 20, "a suite's text file")
        text = decode_text(data, store.uri_of(key))
        read[key] = configs.fingerprint(text)
        return text

    return Folder(store.uri, photos, texts, read_text), read
