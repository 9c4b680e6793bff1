"""A bundle whose files were changed, swapped or added to never opens, by any door, and the error says what to do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lookalike.bundles import digests
from lookalike.bundles.load import load_model
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import (
    ADAPTER,
    MANIFEST,
    BundleReference,
    bundle_sha256,
    read_manifest,
    read_preset,
    write_manifest,
)
from lookalike.bundles.transfer import fetch_bundle, local_bundle, verified_reference, verify_bundle
from lookalike.bundles.verification import open_bundle, verify
from lookalike.diffusion.loading import load_pipeline
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.errors import InputError
from lookalike.models.adapters import save_lora
from lookalike.models.presets import LoraConfig

DIT = "transformer/diffusion_pytorch_model.safetensors"
LORA = f"{ADAPTER}/adapter_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The remembered hashes of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_known", {})
    return tmp_path / "cache" / "lookalike" / "digests"


@pytest.fixture
def copy(bundle_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_dir, tmp_path / "copy"))


@pytest.fixture
def personal(copy: Path, tmp_path: Path) -> Callable[[int], Path]:
    """``personal(seed)``: an adapter on ``copy``."""

    def make(seed: int) -> Path:
        torch.manual_seed(seed)
        model = load_model(copy)
        lora = LoraConfig(rank=2)
        model.add_lora(lora)
        weights = {n: torch.randn_like(p) for n, p in model.transformer.named_parameters() if ".lora_" in n}
        folder = tmp_path / f"personal-{seed}"
        save_lora(folder / ADAPTER, lora, weights)
        base = BundleReference(copy.as_uri(), bundle_sha256(read_manifest(copy)))
        write_manifest(folder, read_preset(copy), base, "acme--duck")
        return folder

    return make


def _scale(file: Path, factor: float) -> None:
    save_file({name: tensor * factor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def _in_place(folder: Path) -> None:
    """Same size, same inode, and the time of before."""
    before = (folder / DIT).stat()
    with (folder / DIT).open("r+b") as file:
        file.seek(before.st_size - 64)
        file.write(bytes(64))
    os.utime(folder / DIT, ns=(before.st_atime_ns, before.st_mtime_ns))


def _tokenizer(folder: Path) -> None:
    file = folder / "mllm" / "tokenizer.json"
    file.write_text(file.read_text().replace("a", "b", 1))


def _linked_folder(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "adapter_config.json").write_text("{}")
    (folder / "mllm" / "more").symlink_to(outside)


def _hidden_weights(folder: Path) -> None:
    """The index of a component is listed, and names a file that is not."""
    (folder / DIT).rename(folder / "transformer" / ".hidden.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(folder / "transformer" / ".hidden.safetensors"), ".hidden.safetensors")}  # fmt: skip # noqa: E501
    (folder / f"{DIT}.index.json").write_text(json.dumps(index))
    write_manifest(folder, read_preset(folder))


ATTACKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zeroed DiT": (
        lambda folder: _scale(folder / DIT, 0.0),
        f"damaged bundle: {DIT} has changed .*SHA-256 is [0-9a-f]",
    ),
    "in place with the time of before": (_in_place, f"damaged bundle: {DIT} has changed"),
    "tokenizer": (_tokenizer, "damaged bundle: mllm/tokenizer.json has changed"),
    "added file": (
        lambda folder: (folder / "mllm" / "adapter_config.json").write_text("{}"),
        "holds mllm/adapter_config.json, which its manifest does not list",
    ),
    "added adapter": (
        lambda folder: shutil.copytree(folder / "vae", folder / ADAPTER),
        f"holds {ADAPTER}/.*, which its manifest does not list",
    ),
    "linked folder": (_linked_folder, "holds mllm/more/adapter_config.json, which"),
    "link back up": (lambda folder: (folder / "vae" / "up").symlink_to(folder), "holds vae/up, which"),
    "removed file": (lambda folder: (folder / "vae" / "config.json").unlink(), "vae/config.json is missing"),
    "hidden weights": (_hidden_weights, "names the weight file transformer/.hidden.safetensors, which"),
}
DOORS: dict[str, Callable[[Path], Any]] = {
    "open_bundle": open_bundle,
    "pipeline": SubjectPipeline.from_pretrained,
    "model": load_model,
    "training": lambda folder: local_bundle(str(folder)),
    "reference": lambda folder: verified_reference(str(folder)),
    "promotion": lambda folder: verify_bundle(str(folder)),
    "evaluation and generation": lambda folder: fetch_bundle(locate_bundle(str(folder))),
    "load": lambda folder: load_pipeline(locate_bundle(str(folder)), "cpu"),
}


@pytest.mark.parametrize(("attack", "message"), ATTACKS.values(), ids=ATTACKS.keys())
def test_every_reader_refuses_a_changed_bundle(copy: Path, attack: Callable[[Path], Any], message: str) -> None:
    open_bundle(copy)  # hashes are remembered by now
    attack(copy)
    for name, door in DOORS.items():
        with pytest.raises(InputError, match=message) as refused:
            door(copy)
        assert "download or export the bundle again" in refused.value.fix, name
        assert str(copy) in str(refused.value.value), name


def test_scaled_and_swapped_adapters_are_refused(copy: Path, personal: Callable[[int], Path]) -> None:
    one, other = personal(1), personal(2)
    open_bundle(one, copy)
    shutil.copyfile(other / LORA, one / LORA)
    with pytest.raises(InputError, match=f"{LORA} has changed"):
        open_bundle(one, copy)
    _scale(other / LORA, -50.0)
    with pytest.raises(InputError, match=f"{LORA} has changed"):
        SubjectPipeline.from_pretrained(other, base=copy)


def test_base_that_was_replaced_is_refused(copy: Path, personal: Callable[[int], Path]) -> None:
    adapter = personal(1)
    located = locate_bundle(str(adapter))
    fetch_bundle(located)
    _scale(copy / DIT, 0.0)
    with pytest.raises(InputError, match=f"{DIT} has changed"):
        fetch_bundle(located)
    write_manifest(copy, read_preset(copy))  # another whole bundle at the same place
    with pytest.raises(InputError, match="the adapter was trained on the base"):
        fetch_bundle(located)
    with pytest.raises(InputError, match="needs the base"):
        locate_bundle(str(adapter))


def test_bundle_that_was_replaced_after_it_was_located_is_refused(copy: Path) -> None:
    located = locate_bundle(str(copy))
    _scale(copy / DIT, 0.5)
    write_manifest(copy, read_preset(copy))
    for door in (lambda: fetch_bundle(located), lambda: load_pipeline(located, "cpu")):
        with pytest.raises(InputError, match="was replaced"):
            door()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "mllm/../../outside", "mllm//x", "./x", MANIFEST])
def test_manifest_lists_nothing_outside_its_folder(copy: Path, name: str) -> None:
    manifest = read_manifest(copy)
    manifest["components"][name] = "0" * 64
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="damaged in components"):
        open_bundle(copy)


def test_owner_is_part_of_the_identity(personal: Callable[[int], Path]) -> None:
    folder = personal(1)
    manifest = read_manifest(folder)
    assert bundle_sha256(manifest) != bundle_sha256({**manifest, "owner": "evil--duck"})
    assert bundle_sha256(manifest) != bundle_sha256({k: v for k, v in manifest.items() if k != "owner"})


def test_hidden_files_of_other_programs_are_left_alone(copy: Path) -> None:
    (copy / ".DS_Store").write_bytes(b"x")
    (copy / "vae" / ".part-0123").write_bytes(b"x")  # of an upload that was killed
    open_bundle(copy)


def test_files_that_have_not_changed_are_not_read_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify(copy)
    monkeypatch.setattr(digests, "_known", {})  # as in another process
    monkeypatch.setattr(digests, "sha256_of", lambda path: pytest.fail(f"{path} is read again"))
    verify(copy)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"files": 3}', b'{"files": [[1]]}', b"[" * 100_000])
def test_damaged_cache_of_hashes_is_written_again(
    copy: Path, cache: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify(copy)
    (memory,) = cache.glob("*.json")
    memory.write_bytes(damage)
    monkeypatch.setattr(digests, "_known", {})
    verify(copy)
    assert len(json.loads(memory.read_bytes())["files"]) == len(read_manifest(copy)["components"])


def test_cache_that_others_can_write_is_not_used(
    copy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    verify(copy)
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    monkeypatch.setattr(digests, "_known", {})
    digests._warn_once.cache_clear()
    read: list[Path] = []
    whole = digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path: (read.append(path), whole(path))[1])
    verify(copy)
    assert len(read) == len(read_manifest(copy)["components"])
    assert "other users can write" in caplog.text


def test_file_that_changes_while_it_is_read_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digests.sha256_of

    def changing(path: Path) -> str:
        found = whole(path)
        if path.name == "config.json":
            path.write_text(path.read_text() + " ")
        return found

    monkeypatch.setattr(digests, "sha256_of", changing)
    with pytest.raises(InputError, match="changed while it was hashed"):
        verify(copy)
