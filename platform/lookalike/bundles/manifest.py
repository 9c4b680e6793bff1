"""A bundle: one folder in diffusers' layout with every component of a model, and ``bundle.json`` that vouches for it.

``model_index.json mllm/ vae/ transformer/ scheduler/ aggregator/`` and optionally ``transformer_lora/`` (peft). A
personal bundle holds ``transformer_lora/`` alone, and its ``bundle.json`` names the base it sits on.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.bundles.contents import REPAIR, check_hashes, check_index, check_listed, counts, files_in, is_index
from lookalike.bundles.digests import file_sha256s
from lookalike.config import fingerprint
from lookalike.documents import decoding, parse_object, render_json
from lookalike.errors import InputError
from lookalike.models.presets import Preset, preset_from_dict

FORMAT = 1
_PROVENANCE = ("source", "revision", "licence", "config", "vocabulary", "lora")  # of the MLLM: its files tell
_SHA256 = re.compile(r"[0-9a-f]{64}")
MANIFEST = "bundle.json"
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


def write_manifest(
    bundle_dir: Path, preset: Preset, base: Base | None = None, owner: str | None = None
) -> dict[str, Any]:
    """Hash every file of ``bundle_dir`` and write its ``bundle.json`` last; returns the manifest.

    ``owner`` is the customer and subject that it was trained for, ``CUSTOMER--SUBJECT``.

    Raises:
        InputError: a component is missing.
    """
    for name in _expected(base is not None):
        if not (bundle_dir / name).exists():
            raise InputError("incomplete bundle", value=str(bundle_dir / name), fix="write every component first")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "preset": dataclasses.asdict(preset),
        "licences": preset.licences,
        "base": None if base is None else dataclasses.asdict(base),
        "components": file_sha256s(bundle_dir, filter(counts, files_in(bundle_dir))),
    }
    if owner is not None:
        manifest["owner"] = owner
    (bundle_dir / MANIFEST).write_bytes(render_json(manifest, indent=2, sort_keys=True))
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
        "owner": not isinstance(manifest.get("owner", ""), str),
        "components": not isinstance(components, dict) or not all(map(_is_listing, components.items())),
    }
    if wrong := [name for name, problem in problems.items() if problem]:
        raise InputError(f"the bundle's manifest is damaged in {', '.join(wrong)}", value=where, fix=REPAIR)
    with decoding("a bundle's manifest", where, fix=REPAIR):
        bundle_sha256(manifest)
    return manifest


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_listing(item: tuple[Any, Any]) -> bool:
    """Whether this is a name below the bundle's folder with a SHA-256."""
    name, sha256 = item
    inside = isinstance(name, str) and name != MANIFEST and not {"", ".", ".."} & set(name.split("/"))
    return inside and isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None


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
    with decoding("a configuration of a VAE", str(bundle_dir / "vae" / "config.json"), fix=REPAIR):
        return int(2 ** (len(config["block_out_channels"]) - 1)) * PATCH, int(config["latent_channels"]) * PATCH**2


def read_preset(bundle_dir: Path) -> Preset:
    """The preset that a bundle was made from."""
    return preset_from_dict(read_manifest(bundle_dir)["preset"], origin=str(bundle_dir / MANIFEST))


def bundle_sha256(manifest: dict[str, Any]) -> str:
    """Identity of a bundle: its files and what its preset says of drawing, the base of a personal one, and its owner.

    Bundles from before presets had stages keep the identity of before, which was that of their files.
    """
    base, preset, components = manifest["base"], manifest["preset"], manifest["components"]
    owner = {"owner": manifest["owner"]} if "owner" in manifest else {}
    if "stages" in preset:
        drawing: dict[str, Any] = {name: preset[name] for name in ("height", "width", "references", "stages")}
        drawing["mllm"] = {name: value for name, value in preset["mllm"].items() if name not in _PROVENANCE}
        return fingerprint({"base": base and base["sha256"], "components": components, "drawing": drawing, **owner})
    if base is None and not owner:
        return fingerprint(components)
    return fingerprint({"base": base and base["sha256"], "components": components, **owner})


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


def verify(bundle_dir: Path, where: str | None = None) -> dict[str, Any]:
    """Check every file of a bundle in a local folder against its manifest, which is returned.

    Files that were checked before and have not changed are not read again (:mod:`lookalike.bundles.digests`). Hidden
    files (``.name``) belong to other programs: no library reads them as a part of a model, and they are left alone.

    Args:
        bundle_dir: the folder.
        where: what errors name, if the folder is a copy.

    Raises:
        InputError: names the first file that is missing, changed, or not listed.
    """
    manifest = read_manifest(bundle_dir)
    listed = manifest["components"]
    where = where or str(bundle_dir)
    check_listed(listed, set(files_in(bundle_dir)), where)
    check_hashes(listed, file_sha256s(bundle_dir, listed), where)
    for name in filter(is_index, listed):
        check_index(name, (bundle_dir / name).read_bytes(), listed, where)
    return manifest


def open_bundle(bundle_dir: Path, base_dir: Path | None = None) -> OpenBundle:
    """Verify and resolve a bundle that lies in a local folder; a personal one needs its base's folder.

    Raises:
        InputError: not a bundle, incomplete, damaged, its base missing or another one.
    """
    manifest = verify(bundle_dir)
    base = manifest["base"]
    for name in _expected(base is not None):
        if not (bundle_dir / name).exists():
            raise InputError("incomplete bundle", value=str(bundle_dir / name), fix=REPAIR)
    preset = preset_from_dict(manifest["preset"], origin=str(bundle_dir / MANIFEST))
    has_adapter = any(name.startswith(f"{ADAPTER}/") for name in manifest["components"])
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
    return OpenBundle(components, bundle_dir / ADAPTER if has_adapter else None, preset, bundle_sha256(manifest))


def check_preset(bundle_dir: Path, name: str) -> None:
    """Raise InputError if the bundle was made from another preset than ``name``."""
    found = read_preset(bundle_dir).name
    if found != name:
        raise InputError(f"a bundle of preset {found}, wanted {name}", value=str(bundle_dir), fix=f"use preset {found}")


def _expected(personal: bool) -> tuple[str, ...]:
    return (ADAPTER,) if personal else ("model_index.json", *COMPONENTS)
