"""What a curation depends on, and the names that follow from it: equal inputs find each other's work."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lookalike
from lookalike import config as configs
from lookalike.data import images, shards, triplets
from lookalike.errors import ConfigError, InputError
from lookalike.models import embedder as embedders
from lookalike.storage import ObjectInfo, Store
from pipelines.curate.config import CurateConfig
from pipelines.curate.takedown import pinned_hash

# Raise it when a row of the image table means something else than before: every shard is indexed again.
INDEX_REVISION = 3
WORK = "work"


def list_shards(raw: Store, dataset: Store) -> list[ObjectInfo]:
    """The tars below the raw prefix, in the order of their keys.

    Raises:
        ConfigError: one of the two prefixes lies inside the other.
        InputError: there is nothing, or nothing that ends in ``.tar``.
    """
    ours, theirs = f"{dataset.uri}/", f"{raw.uri}/"
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise ConfigError("raw and dataset share a prefix", value=[raw.uri, dataset.uri], fix="keep them apart")
    found, others = [], 0
    for info in raw.list():
        if info.key.endswith(".tar"):
            found.append(info)
        else:
            others += 1
    if not found:
        what = (
            f"no .tar among the {others} objects of the raw prefix" if others else "the raw prefix is missing or empty"
        )
        raise InputError(what, value=raw.uri, fix="check --raw, or run jobs/ingest.py first")
    return found


@dataclass(frozen=True)
class Inputs:
    """The identity of a curation's input and settings, and where its work lies below the dataset's prefix."""

    shards: tuple[ObjectInfo, ...]
    """The raw shards, in the order of their keys."""
    config: dict[str, Any]
    """The settings that decide about the result."""
    code: str
    """Version of the code that decides about it."""
    embedder: str
    """Revision of the embedder."""

    @classmethod
    def of(cls, config: CurateConfig, shards: list[ObjectInfo]) -> "Inputs":
        """The inputs of ``config`` on these shards."""
        settings = configs.to_dict(config)
        for name in ("raw", "dataset", "actors"):  # locations, and who does the work
            del settings[name]
        taken_down = settings["filters"]["taken_down"]
        if taken_down["list"] is not None:
            taken_down["list"] = pinned_hash(taken_down["list"])
        return cls(tuple(shards), settings, code_version(), embedders.revision_of(config.embedder))

    @property
    def units(self) -> range:
        """Numbers of the shards."""
        return range(len(self.shards))

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal snapshots."""
        shards = [[info.key, info.size, info.etag] for info in self.shards]
        return configs.fingerprint([shards, self.config, self.code, self.embedder])

    def rows_key(self, shard: int) -> str:
        """Where the image rows of a raw shard are kept: by its key, size and ETag."""
        return f"{WORK}/rows/{INDEX_REVISION}/{self._shard_id(shard)}.parquet"

    def vectors_key(self, shard: int) -> str:
        """Where the embeddings of a raw shard are kept: by the same, and the embedder's revision."""
        return f"{WORK}/vectors/{configs.fingerprint(self.embedder)[:16]}/{self._shard_id(shard)}.parquet"

    def stage_key(self, stage: str, name: str) -> str:
        """Where a later stage keeps the result ``name``."""
        return f"{WORK}/{stage}/{self.fingerprint[:16]}/{name}"

    def _shard_id(self, shard: int) -> str:
        info = self.shards[shard]
        return configs.fingerprint([info.key, info.size, info.etag])[:24]


def code_version() -> str:
    """The library's version and a hash of the sources that decide about a snapshot."""
    sources = sorted(Path(__file__).parent.rglob("*.py")) + sorted(Path(__file__).parent.glob("*.j2"))
    modules = (images, shards, triplets, embedders)
    sources += [Path(str(module.__file__)) for module in modules]
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{lookalike.__version__}+{digest.hexdigest()[:12]}"
