"""``bundle.json``: the manifest of a bundle, with a SHA-256 of every file.

A bundle is one folder in diffusers' layout: ``model_index.json mllm/ vae/ transformer/ scheduler/ aggregator/``, and
optionally ``transformer_lora/`` (peft). A personal bundle holds ``transformer_lora/`` alone, and its manifest names
the base that the adapter was trained on.
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lookalike.bundles.digests import file_sha256s
from lookalike.config import canonical_json, fingerprint
from lookalike.documents import decoding, parse_object, render_json
from lookalike.errors import InputError
from lookalike.models.components import COMPONENTS, REPAIR
from lookalike.models.presets import Preset, preset_from_dict
from lookalike.recent import Recent

MANIFEST = "bundle.json"
FORMAT = 1
ADAPTER = "transformer_lora"
_PROVENANCE = ("source", "revision", "licence", "config", "vocabulary", "lora")  # of the MLLM: its files are hashed
_MOST_FILES = 100_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRESETS = Recent[Preset](16)
"""By their JSON: to parse one takes 0.1 s, and a finetune reads those of its bundles twenty times."""


@dataclass(frozen=True)
class BundleReference:
    """Where a bundle is and which content it has; refers to the weights without reading them."""

    uri: str
    """Location of the bundle's folder."""
    sha256: str
    """Its identity, see :func:`lookalike.bundles.manifest.bundle_sha256`."""
    base: "BundleReference | None" = None
    """The bundle that a personal bundle's adapter was trained on; None for a whole bundle."""
    preset: Preset | None = None
    """What the model was made from; None while the ``bundle.json`` at ``uri`` has not been read."""

    @property
    def whole(self) -> "BundleReference":
        """The bundle that holds the model's components: the base of a personal one, else this one."""
        return self.base or self

    @property
    def max_references(self) -> int:
        """Maximum number of reference images that the model reads for one image."""
        return self._preset.references.max_references

    @property
    def stages(self) -> str:
        """Name of the denoising schedule that the model uses unless overridden."""
        return self._preset.stages

    @property
    def _preset(self) -> Preset:
        assert self.preset is not None, "read the manifest with locate_bundle first"
        return self.preset


def write_manifest(
    bundle_dir: Path, preset: Preset, base: BundleReference | None = None, owner: str | None = None
) -> dict[str, Any]:
    """Hash every file of ``bundle_dir`` and write ``bundle.json``; returns the manifest.

    Args:
        bundle_dir: folder with all components, or with the adapter alone if there is a ``base``.
        preset: what the model was made from.
        base: the bundle that the adapter was trained on; None for a whole bundle.
        owner: customer and subject that it was trained for, ``CUSTOMER--SUBJECT``.
    """
    check_components(bundle_dir, personal=base is not None, fix="write every component before the manifest")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "preset": dataclasses.asdict(preset),
        "licences": preset.licences,
        "base": None if base is None else {"uri": base.uri, "sha256": base.sha256},
        "components": file_sha256s(bundle_dir, filter(is_model_file, files_in(bundle_dir))),
    }
    if owner is not None:
        manifest["owner"] = owner
    (bundle_dir / MANIFEST).write_bytes(render_json(manifest, indent=2, sort_keys=True))
    return manifest


def check_components(bundle_dir: Path, *, personal: bool, fix: str = REPAIR) -> None:
    """Raise InputError unless ``bundle_dir`` holds every component: a personal bundle holds only the adapter."""
    for name in (ADAPTER,) if personal else ("model_index.json", *COMPONENTS):
        if not (bundle_dir / name).exists():
            raise InputError(f"incomplete bundle: {name} is missing", value=str(bundle_dir / name), fix=fix)


def is_model_file(name: str) -> bool:
    """Whether a file belongs to the model. Hidden files (``.name``) do not: no library loads them."""
    return not any(segment.startswith(".") for segment in name.split("/"))


def files_in(bundle_dir: Path) -> list[str]:
    """Return the sorted relative paths of all files in ``bundle_dir`` but its manifest; follow links to folders.

    Raises InputError for more than 100,000 files, and for a folder that cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:
        what = f"cannot read a folder of the bundle: {error.strerror}"
        raise InputError(what, value=str(error.filename), fix="make it readable, or " + REPAIR)

    names: list[str] = []
    for root, below, files in os.walk(bundle_dir, followlinks=True, onerror=refuse):
        folder = Path(root)
        for name in list(below):
            if folder.resolve().is_relative_to((folder / name).resolve()):  # a link to a folder that it lies in
                below.remove(name)
                files.append(name)
        if len(names) + len(files) > _MOST_FILES:  # a link to a whole disk
            raise InputError(
                f"the bundle holds more than {_MOST_FILES} files",
                value=str(bundle_dir),
                fix=f"remove the links to other folders, or {REPAIR}",
            )
        names += [(folder / name).relative_to(bundle_dir).as_posix() for name in files]
    return sorted(name for name in names if name != MANIFEST)


def read_manifest(bundle_dir: Path) -> dict[str, Any]:
    """Read the manifest of the bundle in a local folder; checked as :func:`parse_manifest` does."""
    path = bundle_dir / MANIFEST
    if not path.is_file():
        what = f"the folder has no {MANIFEST}: it is not a bundle, or an unfinished one"
        raise InputError(what, value=str(bundle_dir), fix="check the path: a local folder with bundle.json is needed")
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Parse the bytes of a manifest that were read from ``where``, and check the parts that every reader needs.

    Raises InputError if they are not a manifest, or one of a format that this version does not read.
    """
    manifest = parse_object(data, where, "base", "preset", "components", fix=REPAIR)
    version = manifest.get("format")
    if version != FORMAT or isinstance(version, bool):
        raise InputError(
            f"the bundle has format {version!r}; this version reads format {FORMAT}",
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
    """Whether this is (name of a file below the bundle's folder, SHA-256)."""
    name, sha256 = item
    inside = isinstance(name, str) and name != MANIFEST and not {"", ".", ".."} & set(name.split("/"))
    return inside and isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None


def read_preset(bundle_dir: Path) -> Preset:
    """Read the preset that the bundle in a local folder was made from."""
    return preset_of(read_manifest(bundle_dir), str(bundle_dir / MANIFEST))


def preset_of(manifest: dict[str, Any], where: str) -> Preset:
    """Build the preset of a manifest that was read from ``where``. Raises ConfigError if it is not a valid one."""
    values = manifest["preset"]
    return _PRESETS.get(canonical_json(values), lambda: preset_from_dict(values, origin=where))


def check_preset(bundle_dir: Path, name: str) -> None:
    """Raise InputError if the bundle was made from another preset than ``name``."""
    actual = read_preset(bundle_dir).name
    if actual != name:
        raise InputError(
            f"the bundle was made from the preset {actual}, not {name}",
            value=str(bundle_dir),
            fix=f"use preset {actual}",
        )


def bundle_sha256(manifest: dict[str, Any]) -> str:
    """Compute the identity of a bundle from its manifest (hex SHA-256).

    It covers the files, the parts of the preset that change what the model generates, the identity of the base of a
    personal bundle, and the owner. Bundles from before presets had ``stages`` keep their old identity, which covered
    the files only.
    """
    base, preset, components = manifest["base"], manifest["preset"], manifest["components"]
    owner = {"owner": manifest["owner"]} if "owner" in manifest else {}
    if "stages" in preset:
        generation: dict[str, Any] = {name: preset[name] for name in ("height", "width", "references", "stages")}
        generation["mllm"] = {name: value for name, value in preset["mllm"].items() if name not in _PROVENANCE}
        return fingerprint({"base": base and base["sha256"], "components": components, "drawing": generation, **owner})
    if base is None and not owner:
        return fingerprint(components)
    return fingerprint({"base": base and base["sha256"], "components": components, **owner})


def latent_identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what determines the VAE latents that a bundle's model trains on: equal identities, equal latents.

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
