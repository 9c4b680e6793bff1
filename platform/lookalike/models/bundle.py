"""A bundle: one folder in diffusers' layout with every component of a model, and ``bundle.json`` that vouches for it.

``model_index.json mllm/ vae/ transformer/ scheduler/ aggregator/`` and optionally ``transformer_lora/`` (peft). A
personal bundle holds ``transformer_lora/`` alone, and its ``bundle.json`` names the base it sits on.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.config import fingerprint
from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError
from lookalike.models.presets import Preset, preset_from_dict

FORMAT = 1
_PROVENANCE = ("source", "revision", "licence", "config", "vocabulary", "lora")  # of the MLLM: its files tell
MANIFEST = "bundle.json"
REPAIR = "download or export the bundle again"
"""What a reader of a damaged bundle can do."""
ADAPTER = "transformer_lora"
PATCH = 2  # latents are packed 2 x 2 into tokens
COMPONENTS = ("mllm", "vae", "transformer", "scheduler", "aggregator")


@dataclass(frozen=True)
class Base:
    """The bundle that a personal adapter sits on."""

    uri: str
    """Where it is."""
    sha256: str
    """Its identity, see :func:`bundle_sha256`."""


@dataclass(frozen=True)
class OpenBundle:
    """Where to find the parts of a bundle, base and adapter resolved."""

    components: Path
    """Folder that holds the five components (the base's for a personal bundle)."""
    adapter: Path | None
    """Folder of the peft adapter, if any."""
    preset: Preset
    """What the model was made from."""
    sha256: str
    """Identity of the bundle that was opened."""


def write_manifest(bundle_dir: Path, preset: Preset, base: Base | None = None) -> dict[str, Any]:
    """Hash every file of ``bundle_dir`` and write its ``bundle.json`` last; returns the manifest.

    Raises:
        InputError: a component is missing.
    """
    for name in _expected(base is not None):
        if not (bundle_dir / name).exists():
            raise InputError("incomplete bundle", value=str(bundle_dir / name), fix="write every component first")
    manifest = {
        "format": FORMAT,
        "preset": dataclasses.asdict(preset),
        "licences": preset.licences,
        "base": None if base is None else dataclasses.asdict(base),
        "components": {str(file.relative_to(bundle_dir)): _file_sha256(file) for file in _files(bundle_dir)},
    }
    (bundle_dir / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def read_manifest(bundle_dir: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises:
        InputError: no bundle, or one of a format this version does not know.
    """
    path = bundle_dir / MANIFEST
    if not path.is_file():
        raise InputError(
            f"no {MANIFEST}: not a bundle, or not a finished one", value=str(bundle_dir), fix="check the path"
        )
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The manifest in ``data``, which was read from ``where``, with the parts that every reader needs.

    Raises:
        InputError: not a manifest, or one of a format this version does not know.
    """
    manifest = parse_object(data, where, "base", "preset", "components", fix=REPAIR)
    found = manifest.get("format")
    if found != FORMAT or isinstance(found, bool):
        raise InputError(
            f"a bundle of format {found!r}; this version reads format {FORMAT}",
            value=where,
            fix="use the version of lookalike that wrote it, or export the bundle again",
        )
    base, preset, components = manifest["base"], manifest["preset"], manifest["components"]
    problems = {
        "base": base is not None and not (isinstance(base, dict) and _is_text(base.get("uri"), base.get("sha256"))),
        "preset": not isinstance(preset, dict),
        "components": not isinstance(components, dict) or not _is_text(*components.values()),
    }
    if wrong := [name for name, problem in problems.items() if problem]:
        raise InputError(f"the bundle's manifest is damaged in {', '.join(wrong)}", value=where, fix=REPAIR)
    with decoding("a bundle's manifest", where, fix=REPAIR):
        bundle_sha256(manifest)
    return manifest


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def component_config(bundle_dir: Path, component: str, *names: str, file: str = "config.json") -> dict[str, Any]:
    """The JSON object in a component's configuration, with the keys ``names``.

    Raises:
        InputError: it is not there, is not JSON, or lacks a key.
    """
    path = bundle_dir / component / file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"incomplete bundle: cannot read {component}/{file}: {error.strerror}", value=str(path), fix=REPAIR
        ) from None
    return parse_object(data, str(path), *names, fix=REPAIR)


def token_shape(bundle_dir: Path) -> tuple[int, int]:
    """Pixels of a token's side, and its channels, of the images of the bundle in this folder; no weights are read."""
    config = component_config(bundle_dir, "vae", "block_out_channels", "latent_channels")
    return int(2 ** (len(config["block_out_channels"]) - 1)) * PATCH, int(config["latent_channels"]) * PATCH**2


def read_preset(bundle_dir: Path) -> Preset:
    """The preset that a bundle was made from."""
    return preset_from_dict(read_manifest(bundle_dir)["preset"], origin=str(bundle_dir / MANIFEST))


def bundle_sha256(manifest: dict[str, Any]) -> str:
    """Identity of a bundle: its files and what its preset says of drawing, and the base of a personal one.

    Bundles from before presets had stages keep the identity of before, which was that of their files.
    """
    base, preset, components = manifest["base"], manifest["preset"], manifest["components"]
    if "stages" in preset:
        drawing: dict[str, Any] = {name: preset[name] for name in ("height", "width", "references", "stages")}
        drawing["mllm"] = {name: value for name, value in preset["mllm"].items() if name not in _PROVENANCE}
        return fingerprint({"base": base and base["sha256"], "components": components, "drawing": drawing})
    return fingerprint(components if base is None else {"base": base["sha256"], "components": components})


def latent_identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """What decides about the latents that a bundle's model trains on: equal identities, equal latents.

    ``vae`` is a hash of the VAE's files, ``target`` and ``references`` are (height, width) in px.
    """
    preset = manifest["preset"]
    files = {name: digest for name, digest in manifest["components"].items() if name.startswith("vae/")}
    grid = preset["references"]
    return {
        "vae": fingerprint(files),
        "target": [preset["height"], preset["width"]],
        "references": [grid["height"], grid["width"]],
    }


def verify(bundle_dir: Path) -> dict[str, Any]:
    """Check every file against the manifest, which is returned.

    Raises:
        InputError: names the first file that is missing, changed, or not listed.
    """
    manifest = read_manifest(bundle_dir)
    listed = manifest["components"]
    for name, expected in listed.items():
        path = bundle_dir / name
        if not path.is_file():
            raise InputError("incomplete bundle: a file is missing", value=name, fix="download or export it again")
        if _file_sha256(path) != expected:
            raise InputError("damaged bundle: a file has changed", value=name, fix="download or export it again")
    for file in _files(bundle_dir):
        if str(file.relative_to(bundle_dir)) not in listed:
            raise InputError("the bundle holds a file it does not list", value=str(file), fix="remove it")
    return manifest


def open_bundle(bundle_dir: Path, base_dir: Path | None = None) -> OpenBundle:
    """Resolve a bundle that lies in a local folder; a personal one needs its base's folder.

    Raises:
        InputError: not a bundle, incomplete, its base missing or another one.
    """
    manifest = read_manifest(bundle_dir)
    base = manifest["base"]
    for name in _expected(base is not None):
        if not (bundle_dir / name).exists():
            raise InputError("incomplete bundle", value=str(bundle_dir / name), fix="download or export it again")
    preset = preset_from_dict(manifest["preset"], origin=str(bundle_dir / MANIFEST))
    adapter = bundle_dir / ADAPTER
    components = bundle_dir
    if base is not None:
        if base_dir is None:
            raise InputError("a personal bundle needs its base", value=base["uri"], fix="pass the base's folder")
        found = open_bundle(base_dir)
        if found.sha256 != base["sha256"]:
            raise InputError(
                f"the adapter was trained on the base {base['sha256'][:12]}, this is {found.sha256[:12]}",
                value=str(base_dir),
                fix=f"use {base['uri']}",
            )
        components = base_dir
    return OpenBundle(components, adapter if adapter.is_dir() else None, preset, bundle_sha256(manifest))


def check_preset(bundle_dir: Path, name: str) -> None:
    """Raise InputError if the bundle was made from another preset than ``name``."""
    found = read_preset(bundle_dir).name
    if found != name:
        raise InputError(f"a bundle of preset {found}, wanted {name}", value=str(bundle_dir), fix=f"use preset {found}")


def _expected(personal: bool) -> tuple[str, ...]:
    return (ADAPTER,) if personal else ("model_index.json", *COMPONENTS)


def _files(bundle_dir: Path) -> Iterable[Path]:
    return sorted(path for path in bundle_dir.rglob("*") if path.is_file() and path != bundle_dir / MANIFEST)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
