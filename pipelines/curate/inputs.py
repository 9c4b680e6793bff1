"""The inputs that decide about a snapshot, and their fingerprint: equal inputs share their results."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lookalike
from lookalike import config as configs
from lookalike.annotators import embedder as embedders
from lookalike.bundles.manifest import latent_identity, read_manifest
from lookalike.bundles.transfer import local_bundle
from lookalike.data import images
from lookalike.storage import ObjectInfo
from pipelines.curate.captions import tokenizer_hashes
from pipelines.curate.config import CurateConfig
from pipelines.curate.takedown import pinned_hash
from pipelines.curate.workspace import Workspace

REVISIONS = {
    "index": 5, "cluster_subjects": 1, "screen": 1, "duplicates": 1, "subject_links": 1, "score": 1, "plan": 1,
    "layout": 1, "materialise": 1, "finish": 1,
}  # fmt: skip
"""Revision of each stage. Raise a stage's number when it, or library code that it calls, gives another result for the
same inputs: with another ``index`` every raw shard is indexed again, with any other the stages after the index run
again and the next snapshot is published. Texts and refactoring change no revision."""


_WITH_HEIC = "+heic"  # end of a manifest's code version

CAPTION = "caption"
"""Name of the captioner in :attr:`Inputs.models`; a scorer has the name of its filter."""


@dataclass(frozen=True)
class Inputs:
    """The identity of a curation's raw shards, settings, code and models."""

    shards: tuple[ObjectInfo, ...]
    """The raw shards, in the order of their keys."""
    config: dict[str, Any]
    """The settings that decide about the snapshot."""
    heic: bool
    """Whether HEIC and AVIF can be decoded."""
    embedder: str
    """Revision of the embedder."""
    models: dict[str, str]
    """Revisions of the models that score and caption, by filter, or :data:`CAPTION`."""
    latents: dict[str, Any] | None
    """Identity of the encoded latents, if any (:func:`lookalike.bundles.manifest.latent_identity`)."""

    @classmethod
    def of(cls, config: CurateConfig, shards: list[ObjectInfo]) -> "Inputs":
        """Return the inputs of ``config`` on these raw shards."""
        settings = configs.to_dict(config)
        for name in ("raw", "dataset", "actors"):  # places and actors
            del settings[name]
        taken_down = settings["filters"]["taken_down"]
        del taken_down["allow_unmatched"], taken_down["max_list_mib"]  # these change no image
        if taken_down["list"] is not None:
            taken_down["list"] = pinned_hash(taken_down["list"])
        if config.captions.presets:
            settings["captions"]["tokenizers"] = tokenizer_hashes(config.captions)
        models = {name: step.scorer.revision for name, step in config.filters.scored() if step.scorer is not None}
        if config.captioner is not None:
            models[CAPTION] = config.captioner.revision
        latents = None
        if config.shards.latents is not None:
            latents = latent_identity(read_manifest(local_bundle(config.shards.latents)))
            del settings["shards"]["latents"]  # a URI
        embedder = embedders.revision_of(config.embedder)
        return cls(tuple(shards), settings, images.HEIC_INSTALLED, embedder, models, latents)

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> "Inputs":
        """Return the inputs of a published snapshot."""
        shards = manifest["inputs"]["shards"].items()
        infos = tuple(ObjectInfo(key, shard["size"], shard["etag"]) for key, shard in sorted(shards))
        heic = manifest["code_version"].endswith(_WITH_HEIC)
        names = ("config", "embedder", "models", "latents")
        return cls(infos, heic=heic, **{name: manifest[name] for name in names})

    @property
    def units(self) -> range:
        """Numbers of the raw shards."""
        return range(len(self.shards))

    @property
    def code(self) -> str:
        """The library's version and the revisions of all stages, as the manifest shows them."""
        revisions = ".".join(f"{stage}{number}" for stage, number in REVISIONS.items())
        return f"{lookalike.__version__}+{revisions}{_WITH_HEIC if self.heic else ''}"

    @cached_property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal snapshots."""
        shards = [[info.key, info.size, info.etag] for info in self.shards]
        code = [REVISIONS, self.heic]
        return configs.fingerprint([shards, self.config, code, self.embedder, self.models, self.latents])

    @cached_property
    def workspace(self) -> Workspace:
        """Where the objects of this curation lie."""
        read = {name: value for name, value in self.config["labels"].items() if name != "found"}
        read["limits"] = self.config["limits"]
        if self.heic:  # files that could not be read without it are read again
            read["formats"] = images.EXTENSIONS
        revision = REVISIONS["index"]
        index = f"{revision}-{configs.fingerprint(read)[:8]}"
        return Workspace(self.shards, index, revision, self.embedder, self.fingerprint)
