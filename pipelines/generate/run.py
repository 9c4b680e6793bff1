"""Run one generation, from its configuration to its images."""

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from lookalike import config as configs
from lookalike.bundles.load import load_preprocessor
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import BundleReference
from lookalike.bundles.transfer import fetch_bundle
from lookalike.data.images import EXTENSIONS, decode
from lookalike.data.text import decode_text
from lookalike.errors import ConfigError, InputError
from lookalike.models.components import token_shape
from lookalike.storage import Store, locate_object, open_store, read_at_most, read_object
from lookalike.storage.claim import run_once
from lookalike.storage.results import AGAIN, read_result, write_result
from pipelines.actors import run_units
from pipelines.generate.config import GenerateConfig

if TYPE_CHECKING:
    from lookalike.registry import ModelReference
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
    from pipelines.generate.worker import Request

    model = resolve(config.model, config.tracking, config.bundle)
    bundle = locate_bundle(model.bundle_uri, model.bundle_sha256, base_uri=config.base)
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
        for (
            prompt
        ) in prompts:  # raises before any work; one at a time, since all at once would hold the photos for each
            preprocessor([prompt], [pixels], truncate_prompts=True)
        _make(config, store, model, bundle, references, requests)
        store.write(SHEET, _contact_sheet(store, config, pixels, requests))
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


def _make(
    config: GenerateConfig,
    store: Store,
    model: "ModelReference",
    bundle: BundleReference,
    references: Sequence[tuple[str, bytes]],
    requests: "Sequence[Request]",
) -> None:
    """Generate the images that are not in ``store`` yet."""
    from pipelines.generate.worker import GenerationWork, Generator

    name = f"{model.name}/{model.version}" if model.version else model.name or bundle.uri
    there = {info.key for info in store.list("images/")}
    missing = [request for request in requests if request.file not in there]
    units = [tuple(missing[first : first + config.batch_size]) for first in range(0, len(missing), config.batch_size)]
    if units:
        work = GenerationWork(config, bundle, name, tuple(data for _, data in references), tuple(units))
        for _ in run_units(Generator, work, len(units), config.actors):
            pass


def _earlier_result(store: Store, fingerprint: str, requests: "Sequence[Request]") -> dict[str, Any]:
    """Read ``generations.json``. Raises InputError if it is of another run, or lists other images."""
    sealed = read_result(store, RESULT, fingerprint, _RESULT)
    result = sealed or read_object(store, RESULT)
    if result["images"] != [asdict(request) for request in requests]:  # also of an earlier version, without a seal
        raise InputError("the result lists other images than this run's", value=store.uri_of(RESULT), fix=AGAIN)
    if sealed is None:
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
        found = None if location.endswith("/") else locate_object(location)
        if found and (PurePosixPath(found[1]).suffix[1:].lower() in EXTENSIONS or found[0].exists(found[1])):
            files.append((found[0].uri_of(found[1]), read_at_most(*found, *bound)))
            continue
        folder = open_store(location)
        keys = [info.key for info in folder.list() if PurePosixPath(info.key).suffix[1:].lower() in EXTENSIONS]
        if not keys:
            raise InputError("neither a photo nor a folder of photos", value=location, fix="check --reference")
        files += [(folder.uri_of(key), read_at_most(folder, key, *bound)) for key in keys[: max(1, limit - len(files))]]
    if len(files) > limit:
        raise ConfigError(
            f"{len(files)} references; this model reads {limit}",
            value=[uri for uri, _ in files],
            fix=f"name at most {limit}",
        )
    for uri, data in files:
        try:
            check_image(decode(data))
        except InputError as error:
            raise InputError(f"a reference cannot be used: {error.what}", value=uri, fix="name another file") from error
    return files


def _contact_sheet(store: Store, config: GenerateConfig, references: Sequence[Any], requests: Sequence[Any]) -> bytes:
    from lookalike.report.grid import GridRow, draw_grid

    rows: dict[str, dict[str, Any]] = {}
    for request in requests:
        row = rows.setdefault(request.file.split("-")[0], {"prompt": request.prompt, "images": {}})
        row["images"][f"seed {request.seed}"] = decode(store.read(request.file))
    columns = [f"seed {config.seed + index}" for index in range(config.num_images)]
    sheet = draw_grid([GridRow(references, row["prompt"], row["images"]) for row in rows.values()], columns)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
