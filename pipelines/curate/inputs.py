"""The inputs that decide about a snapshot, and their fingerprint: equal inputs share their results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from pipelines.curate.filters.near_duplicate import NearDuplicate
from pipelines.curate.takedown import pinned_hash
from pipelines.curate.workspace import Workspace, shard_id

REVISIONS = {
    "index": 6, "cluster_subjects": 2, "gather": 2, "duplicates": 1, "subject_links": 2, "score": 1, "plan": 3,
    "layout": 2, "materialise": 3, "stored_images": 2, "finish": 2,
}  # fmt: skip
"""Revision of each stage. Raise a stage's number when it, or library code that it calls, gives another result for the
same inputs: with another ``index`` every raw shard is indexed again, with any other the stages after the index run
again and the next snapshot is published; with another ``stored_images`` no image of an earlier snapshot is used again.
Texts and refactoring change no revision."""


_WITH_HEIC = "+heic"  # end of a manifest's code version

CAPTION = "caption"
"""Name of the captioner in :attr:`Inputs.models`; a scorer has the name of its filter."""


@dataclass(frozen=True)
class Inputs:
    """The identity of a curation's raw shards, settings, code and models."""

    shards: tuple[ObjectInfo, ...]
    """The raw shards, in the order of their keys; none in a task (:meth:`for_tasks`)."""
    listing: str
    """Hash of the raw shards."""
    config: dict[str, Any]
    """The settings that decide about the snapshot."""
    filters: dict[str, list[Any]]
    """(name, settings) of the filters that are on, in the order of the funnel, by their scope."""
    links_copies: bool
    """Whether subjects that share a near copy of an image are linked."""
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
        if config.filters.held_out is None:  # snapshots of before there was this filter keep their fingerprint
            del settings["filters"]["held_out"]
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
        filters: dict[str, list[Any]] = {"image": [], "content": [], "score": [], "subject": []}
        for name, step in config.filters.steps():
            filters[step.scope].append([name, settings["filters"].get(name)])
        embedder = embedders.revision_of(config.embedder)
        links_copies = config.filters.has(NearDuplicate) and config.embedder != embedders.NO_EMBEDDER
        heic = images.HEIC_INSTALLED
        return cls(tuple(shards), _hash_of(shards), settings, filters, links_copies, heic, embedder, models, latents)

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> "Inputs":
        """Return the inputs of a published snapshot, as far as the index depends on them: without :attr:`filters`."""
        shards = manifest["inputs"]["shards"].items()
        infos = [ObjectInfo(key, shard["size"], shard["etag"]) for key, shard in sorted(shards)]
        heic = manifest["code_version"].endswith(_WITH_HEIC)
        names = ("config", "embedder", "models", "latents")
        inputs = {name: manifest[name] for name in names}
        return cls(tuple(infos), _hash_of(infos), filters={}, links_copies=False, heic=heic, **inputs)

    @property
    def units(self) -> range:
        """Numbers of the raw shards."""
        return range(len(self.shards))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The id of each raw shard."""
        return tuple(map(shard_id, self.shards))

    def for_tasks(self) -> "Inputs":
        """Return the inputs without the list of raw shards, whose size a task must not depend on."""
        return replace(self, shards=())

    @property
    def code(self) -> str:
        """The library's version and the revisions of all stages, as the manifest shows them."""
        revisions = ".".join(f"{stage}{number}" for stage, number in REVISIONS.items())
        return f"{lookalike.__version__}+{revisions}{_WITH_HEIC if self.heic else ''}"

    @property
    def stored_images(self) -> str:
        """Fingerprint of what decides about the bytes of stored images and latents."""
        names = ("image_size", "buckets", "jpeg_quality")
        settings = {name: self.config["shards"][name] for name in names}
        return configs.fingerprint([settings, self.latents, REVISIONS["stored_images"]])

    @cached_property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal snapshots."""
        code = [REVISIONS, self.heic]
        return configs.fingerprint([self.listing, self.config, code, self.embedder, self.models, self.latents])

    @cached_property
    def stages(self) -> dict[str, str]:
        """Fingerprint of what the results of each stage after the index depend on.

        So another quality of JPEG files redoes only what comes after the plan, and another similarity of pairs only the
        plan and what comes after it.
        """
        config = self.config
        found = [self.listing, self._index, self.embedder, config["labels"], config["seed"]]
        stages = {"found": _after("cluster_subjects", found)}
        stages["assigned"] = stages["found"]
        stages["taken-down"] = configs.fingerprint([stages["found"], config["filters"]["taken_down"]])
        gathered = [stages["found"], self.filters["image"], self.links_copies, config["plan"]["rows_per_partition"]]
        stages["gather"] = _after("gather", gathered)
        stages["duplicates"] = _after("duplicates", [stages["gather"], self.filters["content"], bool(self.models)])
        copies = config["filters"]["near_duplicate"] if self.links_copies else None
        stages["links"] = _after("subject_links", [stages["duplicates"], copies])
        asked = [self.filters["score"], self.models, config["scoring"]]
        stages["scores"] = _after("score", [stages["duplicates"], *asked])
        settings = [config[name] for name in ("plan", "captions", "captioner")]
        stages["plan"] = _after("plan", [stages["scores"], self.filters["subject"], settings])
        stages["layout"] = stages["materialise"] = self.fingerprint
        return stages

    @cached_property
    def workspace(self) -> Workspace:
        """Where the objects of this curation lie."""
        return Workspace(self._index, REVISIONS["index"], self.embedder, self.stages)

    @property
    def index_workspace(self) -> Workspace:
        """Where the objects of the index lie, and no others."""
        return Workspace(self._index, REVISIONS["index"], self.embedder, {})

    @cached_property
    def _index(self) -> str:
        read = {name: value for name, value in self.config["labels"].items() if name != "found"}
        read["limits"] = self.config["limits"]
        if self.heic:  # files that could not be read without it are read again
            read["formats"] = images.EXTENSIONS
        return f"{REVISIONS['index']}-{configs.fingerprint(read)[:8]}"


def _hash_of(shards: Sequence[ObjectInfo]) -> str:
    return configs.fingerprint([[info.key, info.size, info.etag] for info in shards])


def _after(stage: str, inputs: list[Any]) -> str:
    return configs.fingerprint([inputs, stage, REVISIONS[stage]])
