"""Run one generation, from its configuration to its images."""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike import config as configs
from lookalike.bundles.load import load_preprocessor
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import BundleReference
from lookalike.bundles.transfer import fetch_bundle
from lookalike.data.images import EXTENSIONS, decode
from lookalike.data.text import decode_text
from lookalike.errors import ConfigError, InputError
from lookalike.models.components import token_shape
from lookalike.registry.names import check_one_customer, owner_of
from lookalike.storage import Store, locate_object, open_store, read_at_most
from lookalike.storage.claim import AGAIN, read_result, run_once, write_result
from lookalike.storage.erasing import Watch
from pipelines.actors import run_units
from pipelines.generate.config import GenerateConfig

if TYPE_CHECKING:
    from pipelines.generate.worker import Request

log = logging.getLogger(__name__)

RESULT = "generations.json"
_RESULT = {"model": dict, "references": list, "images": list, "config": dict}
SHEET = "contact_sheet.png"


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Generate the images; returns the content of ``generations.json``.

    Raises:
        InputError: the model is not registered, its bundle is missing, or a reference cannot be used.
        ConfigError: more references than the model reads.
        ConflictError: ``config.out`` holds another generation.
    """
    from lookalike.diffusion.inputs import check_size
    from lookalike.registry import resolve
    from pipelines.generate.worker import GenerationWork, Generator, Request

    model = resolve(config.model, config.tracking, config.bundle)
    bundle = locate_bundle(model.bundle_uri, model.bundle_sha256, base_uri=config.base)
    mine = {"the model": owner_of(model.bundle_uri), "--model": config.model, "its bundle": model.bundle_uri}
    given = {f"--reference {uri}": uri for uri in config.reference}
    check_one_customer({**mine, "--out": config.out, "--base": config.base, **given})
    prompts = read_prompts(config)
    references = _references(config, bundle)
    components, _ = fetch_bundle(bundle)
    preprocessor = load_preprocessor(components)
    preset, multiple = preprocessor.preset, token_shape(components)[0]
    check_size(config.height or preset.height, config.width or preset.width, multiple)
    store = open_store(config.out)
    inputs = {
        "bundle": bundle.sha256,
        "prompts": prompts,
        "references": [configs.fingerprint(data.hex()) for _, data in references],
    }
    requests = tuple(
        Request(f"images/{number:04d}-{config.seed + index}.png", prompt, config.seed + index)
        for number, prompt in enumerate(prompts)
        for index in range(config.num_images)
    )

    def work(fingerprint: str) -> dict[str, Any]:
        pixels = [decode(data) for _, data in references]
        for prompt in prompts:  # before any image; one at a time, since all at once would hold the photos for each
            preprocessor([prompt], [pixels], truncate_prompts=True)
        name = f"{model.name}/{model.version}" if model.version else model.name or bundle.uri
        there = {info.key for info in store.list("images/")}
        missing = [request for request in requests if request.file not in there]
        firsts = range(0, len(missing), config.batch_size)
        units = tuple(tuple(missing[first : first + config.batch_size]) for first in firsts)
        if units:
            plan = GenerationWork(config, bundle, name, tuple(data for _, data in references), units)
            watch = Watch(store)
            for _ in run_units(Generator, plan, len(units), config.actors):
                watch.check()
        store.write(SHEET, _contact_sheet(store, pixels, requests, config.num_images))
        result = {
            "model": {
                "name": model.name,
                "version": model.version,
                "bundle_uri": bundle.uri,
                "sha256": bundle.sha256,
                "stages": bundle.stages,
            },
            "references": [uri for uri, _ in references],
            "images": [asdict(request) for request in requests],
            "config": configs.to_dict(config),
        }
        write_result(store, RESULT, result, fingerprint)
        return result

    return run_once(
        store,
        RESULT,
        config,
        content={"inputs": inputs},
        earlier=lambda fingerprint: _earlier_result(store, fingerprint, requests),
        work=work,
    )


def _earlier_result(store: Store, fingerprint: str, requests: "Sequence[Request]") -> dict[str, Any]:
    """Read ``generations.json``. Raises InputError if it is of another run, or lists other images."""
    result, sealed = read_result(store, RESULT, fingerprint, _RESULT)
    if result["images"] != [asdict(request) for request in requests]:  # also of an earlier version, without a seal
        raise InputError("the result lists other images than this run's", value=store.uri_of(RESULT), fix=AGAIN)
    if not sealed:
        write_result(store, RESULT, result, fingerprint)
    return result


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
    from lookalike.models.preprocess import check_image

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


def _contact_sheet(
    store: Store, references: Sequence[np.ndarray], requests: "Sequence[Request]", images_per_prompt: int
) -> bytes:
    from lookalike.report.grid import GridRow, draw_grid, encode_grid

    rows = []
    for first in range(0, len(requests), images_per_prompt):
        part = requests[first : first + images_per_prompt]
        images = {f"seed {request.seed}": decode(store.read(request.file)) for request in part}
        rows.append(GridRow(references, part[0].prompt, images))
    return encode_grid(draw_grid(rows, list(rows[0].images)))
