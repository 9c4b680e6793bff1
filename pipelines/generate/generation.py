"""One generation: what its model is, what it reads, which images are missing below its output, and its result."""

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from lookalike import config as configs
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import BundleReference
from lookalike.data.images import EXTENSIONS, decode, encode_png
from lookalike.data.text import decode_text
from lookalike.diffusion.schedule import PRESET
from lookalike.errors import ConfigError, InputError
from lookalike.models.preprocess import Preprocessor, check_image
from lookalike.registry import resolve
from lookalike.registry.names import check_one_customer, owner_of
from lookalike.storage import Store, locate_object, open_store, read_at_most
from lookalike.storage.claim import AGAIN, read_result, write_result
from pipelines.generate.config import GenerateConfig

RESULT, SHEET = "generations.json", "contact_sheet.png"
_RESULT = {"model": dict, "references": list, "images": list, "config": dict}


@dataclass(frozen=True)
class Model:
    """A model that was found by its name or its place."""

    name: str | None
    """Of a registered model."""
    version: int | None
    """Of a registered model."""
    bundle: BundleReference
    owner: str | None
    """``CUSTOMER--SUBJECT`` of a personal bundle, by its manifest."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else self.name or self.bundle.uri


def find_model(model: str, tracking: str | None, bundle: str | None, base: str | None) -> Model:
    """Find a model as :func:`lookalike.registry.resolve` does, and its bundle as :func:`locate_bundle` does."""
    found = resolve(model, tracking, bundle)
    located = locate_bundle(found.bundle_uri, found.bundle_sha256, base_uri=base)
    return Model(found.name, found.version, located, owner_of(found.bundle_uri))


def check_customer(config: GenerateConfig, model: Model) -> None:
    """Raise ConfigError unless the model and all places of ``config`` belong to one customer at most."""
    mine = {"the model": model.owner, "--model": config.model, "its bundle": model.bundle.uri}
    given = {f"--reference {uri}": uri for uri in config.reference}
    check_one_customer({**mine, "--out": config.out, "--base": config.base, **given})


@dataclass(frozen=True)
class PlannedImage:
    """One image to generate."""

    file: str
    """Its key below the output."""
    prompt: str
    """The prompt."""
    seed: int
    """Seed of the initial noise."""


@dataclass(frozen=True)
class Generation:
    """The images of one configuration, which has read its inputs."""

    config: GenerateConfig
    model: Model
    prompts: tuple[str, ...]
    references: tuple[tuple[str, bytes], ...]
    """URI and bytes of each photo of the subject."""

    @classmethod
    def read(cls, config: GenerateConfig, model: Model) -> "Generation":
        """Read prompts and references.

        Raises:
            InputError: one of them is missing, empty or cannot be used.
            ConfigError: they belong to another customer than the model, or are more than the model reads.
        """
        check_customer(config, model)
        return cls(config, model, tuple(read_prompts(config)), tuple(_references(config, model.bundle)))

    @property
    def store(self) -> Store:
        """The output."""
        return open_store(self.config.out)

    @cached_property
    def images(self) -> tuple[PlannedImage, ...]:
        """All images, by prompt and seed."""
        seeds = range(self.config.seed, self.config.seed + self.config.num_images)
        return tuple(
            PlannedImage(f"images/{number:04d}-{seed}.png", prompt, seed)
            for number, prompt in enumerate(self.prompts)
            for seed in seeds
        )

    @cached_property
    def photos(self) -> list[np.ndarray]:
        """The references, uint8 ``[H, W, 3]``."""
        return [decode(data) for _, data in self.references]

    @property
    def content(self) -> dict[str, Any]:
        """What identifies the inputs in the claim of the output."""
        fingerprints = [configs.fingerprint(data.hex()) for _, data in self.references]
        inputs = {"bundle": self.model.bundle.sha256, "prompts": list(self.prompts), "references": fingerprints}
        return {"inputs": inputs}

    def check_prompts(self, preprocessor: Preprocessor) -> None:
        """Raise InputError for a prompt or a photo that the model cannot read."""
        for prompt in self.prompts:  # one at a time, since all at once would hold the photos for each
            preprocessor([prompt], [self.photos], truncate_prompts=True)

    def missing(self) -> list[PlannedImage]:
        """The images that do not exist yet."""
        there = {info.key for info in self.store.list("images/")}
        return [image for image in self.images if image.file not in there]

    def write_image(self, image: PlannedImage, pixels: Any) -> None:
        """Write a generated image, see :func:`write_image`."""
        write_image(self.config, self.model, image, pixels)

    def finish(self, run: str) -> dict[str, Any]:
        """Write the contact sheet and ``generations.json``, which is returned, for the claim ``run``."""
        self.store.write(SHEET, self._contact_sheet())
        bundle = self.model.bundle
        result = {
            "model": {
                "name": self.model.name,
                "version": self.model.version,
                "bundle_uri": bundle.uri,
                "sha256": bundle.sha256,
                "stages": bundle.stages,
            },
            "references": [uri for uri, _ in self.references],
            "images": [asdict(image) for image in self.images],
            "config": configs.to_dict(self.config),
        }
        write_result(self.store, RESULT, result, run)
        return result

    def earlier(self, run: str) -> dict[str, Any]:
        """Read ``generations.json``. Raises InputError if it is of another run, or lists other images."""
        store = self.store
        result, sealed = read_result(store, RESULT, run, _RESULT)
        if result["images"] != [asdict(image) for image in self.images]:  # also of an earlier version, without a seal
            raise InputError("the result lists other images than this run's", value=store.uri_of(RESULT), fix=AGAIN)
        if not sealed:
            write_result(store, RESULT, result, run)
        return result

    def _contact_sheet(self) -> bytes:
        from lookalike.report.grid import GridRow, draw_grid, encode_grid

        rows, store = [], self.store
        for first in range(0, len(self.images), self.config.num_images):
            part = self.images[first : first + self.config.num_images]
            images = {f"seed {image.seed}": decode(store.read(image.file)) for image in part}
            rows.append(GridRow(self.photos, part[0].prompt, images))
        return encode_grid(draw_grid(rows, list(rows[0].images)))


def write_image(config: GenerateConfig, model: Model, image: PlannedImage, pixels: Any) -> None:
    """Write ``pixels`` (a PIL image) below the output, with its provenance in PNG text chunks."""
    text = {
        "prompt": image.prompt,
        "seed": str(image.seed),
        "model": str(model),
        "bundle_sha256": model.bundle.sha256,
        "stages": model.bundle.stages if config.stages == PRESET else config.stages,
        "Software": "lookalike",
    }
    open_store(config.out).write(image.file, encode_png(np.asarray(pixels), text))


def read_prompts(config: GenerateConfig) -> list[str]:
    """Read all prompts, in their order. Raises InputError for an empty prompt, a file too large or not text."""
    prompts = [prompt.strip() for prompt in config.prompt]
    if config.prompts_file:
        store, key = locate_object(config.prompts_file)
        data = read_at_most(store, key, config.max_prompts_mib, "max_prompts_mib")
        text = decode_text(data, store.uri_of(key), len(data))
        prompts += [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if not prompts or not all(prompts):
        raise InputError("a prompt is empty", value=config.prompts_file or "", fix="give every prompt some text")
    return prompts


def _references(config: GenerateConfig, bundle: BundleReference) -> list[tuple[str, bytes]]:
    """Read each reference, as URI and bytes; of a folder the first photos by name, as many as the model still reads."""
    limit, bound = bundle.max_references, (config.max_reference_mib, "max_reference_mib")
    files: list[tuple[str, bytes]] = []
    for location in config.reference:
        store, key = (None, "") if location.endswith("/") else locate_object(location)
        if store and (PurePosixPath(key).suffix[1:].lower() in EXTENSIONS or store.exists(key)):
            files.append((store.uri_of(key), read_at_most(store, key, *bound)))
            continue
        folder = open_store(location)
        keys = [info.key for info in folder.list() if PurePosixPath(info.key).suffix[1:].lower() in EXTENSIONS]
        if not keys:
            raise InputError(
                "the reference is neither a photo nor a folder of photos", value=location, fix="check --reference"
            )
        files += [(folder.uri_of(key), read_at_most(folder, key, *bound)) for key in keys[: max(1, limit - len(files))]]
    if len(files) > limit:
        raise ConfigError(
            f"there are {len(files)} references, and this model reads at most {limit}",
            value=[uri for uri, _ in files],
            fix=f"name at most {limit} with --reference",
        )
    for uri, data in files:
        try:
            check_image(decode(data))
        except InputError as error:
            raise InputError(f"a reference cannot be used: {error.what}", value=uri, fix="name another file") from error
    return files
