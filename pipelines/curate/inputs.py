"""What a curation depends on, and the names that follow from it: equal inputs find each other's work."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lookalike
from lookalike import config as configs
from lookalike import pixels
from lookalike.annotators import embedder as embedders
from lookalike.bundles.manifest import latent_identity, read_manifest
from lookalike.bundles.transfer import local_bundle
from lookalike.data import archive, containers, formats, images, shards, text, triplets
from lookalike.storage import ObjectInfo
from pipelines.curate.captions import tokenizer_hashes
from pipelines.curate.changed import shard_id
from pipelines.curate.config import CurateConfig
from pipelines.curate.takedown import pinned_hash

# Raise it when a row of the image table means something else than before: every shard is indexed again.
INDEX_REVISION = 5
WORK = "work"


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
    models: dict[str, str]
    """Revisions of the models that score and caption, by what they are for."""
    latents: dict[str, Any] | None
    """Identity of the latents that are encoded (:func:`lookalike.bundles.manifest.latent_identity`)."""

    @classmethod
    def of(cls, config: CurateConfig, shards: list[ObjectInfo]) -> "Inputs":
        """The inputs of ``config`` on these shards."""
        settings = configs.to_dict(config)
        for name in ("raw", "dataset", "actors"):  # locations, and who does the work
            del settings[name]
        taken_down = settings["filters"]["taken_down"]
        del taken_down["allow_unmatched"]  # decides about no image
        if taken_down["list"] is not None:
            taken_down["list"] = pinned_hash(taken_down["list"])
        if config.captions.presets:
            settings["captions"]["tokenizers"] = tokenizer_hashes(config.captions)
        models = {name: step.scorer.revision for name, step in config.filters.scored() if step.scorer is not None}
        if config.captioner is not None:
            models["caption"] = config.captioner.revision
        latents = None
        if config.shards.latents is not None:
            latents = latent_identity(read_manifest(local_bundle(config.shards.latents)))
            del settings["shards"]["latents"]  # a place
        embedder = embedders.revision_of(config.embedder)
        return cls(tuple(shards), settings, code_version(), embedder, models, latents)

    @property
    def units(self) -> range:
        """Numbers of the shards."""
        return range(len(self.shards))

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal snapshots."""
        shards = [[info.key, info.size, info.etag] for info in self.shards]
        return configs.fingerprint([shards, self.config, self.code, self.embedder, self.models, self.latents])

    def rows_key(self, shard: int) -> str:
        """Where the image rows of a raw shard are kept: by its key, size and ETag, and what labels it."""
        return f"{WORK}/rows/{self._labels}/{self._shard_id(shard)}.parquet"

    def vectors_key(self, shard: int) -> str:
        """Where the embeddings of a raw shard are kept: by the same, and the embedder's revision."""
        revision = configs.fingerprint(self.embedder)[:16]
        return f"{WORK}/vectors/{self._labels}-{revision}/{self._shard_id(shard)}.parquet"

    def answers_key(self, revision: str, shard: int) -> str:
        """Where is kept what the model of that revision said of a raw shard's images: by content, whatever the labels
        and filters are."""
        return f"{WORK}/answers/{configs.fingerprint(revision)[:16]}/{self._shard_id(shard)}.parquet"

    def found_key(self, kind: str, shard: int) -> str:
        """Where the ``rows`` and ``vectors`` of a raw shard are kept once subjects were found."""
        return self.stage_key("found", f"{kind}/{shard:06d}.parquet")

    def unpacked_key(self, shard: int) -> str:
        """Where the tar inside a raw shard is kept below the dataset's prefix, if the shard is compressed."""
        return f"{WORK}/unpacked/{INDEX_REVISION}-{self._shard_id(shard)}.tar"

    def stage_key(self, stage: str, name: str) -> str:
        """Where a later stage keeps the result ``name``."""
        return f"{WORK}/{stage}/{self.fingerprint[:16]}/{name}"

    @property
    def _labels(self) -> str:
        """What decides in which order rows and vectors lie."""
        read = {name: value for name, value in self.config["labels"].items() if name != "found"}
        read["limits"] = self.config["limits"]
        if images.HEIC_INSTALLED:  # what could not be read without it is read again
            read["formats"] = images.EXTENSIONS
        return f"{INDEX_REVISION}-{configs.fingerprint(read)[:8]}"

    def _shard_id(self, shard: int) -> str:
        return shard_id(self.shards[shard])


def code_version() -> str:
    """The library's version and a hash of the sources that decide about a snapshot."""
    sources = sorted(Path(__file__).parent.rglob("*.py")) + sorted(Path(__file__).parent.glob("*.j2"))
    modules = (archive, images, shards, triplets, embedders)
    sources += [Path(str(module.__file__)) for module in modules]
    sources += [Path(str(module.__file__)) for module in (containers, formats, pixels, text)]
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{lookalike.__version__}+{digest.hexdigest()[:12]}{'+heic' if images.HEIC_INSTALLED else ''}"
