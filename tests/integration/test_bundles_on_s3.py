"""Bundles in a bucket: verified while they are downloaded, and where they lie."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.bundles.build import materialise
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.transfer import _downloaded, local_bundle, opened_adapter, upload_bundle, verify_bundle
from lookalike.errors import InputError
from lookalike.models.presets import load_preset
from lookalike.storage import Store, open_store
from tests.integration.test_promotion import bundle
from tests.personal import personal_bundle

WEIGHTS = "transformer/model.safetensors"


@pytest.fixture
def store(s3_uri: str) -> Store:
    _downloaded.cache_clear()
    return open_store(bundle(s3_uri, "one").uri)


def test_whole_bundle_is_downloaded_and_identified(store: Store) -> None:
    folder = local_bundle(store.uri)
    assert (folder / WEIGHTS).read_bytes() == b"one"
    identity = verify_bundle(store.uri)
    assert local_bundle(store.uri, identity) == folder
    with pytest.raises(InputError, match="the bundle here was replaced"):
        local_bundle(store.uri, "0" * 64)
    (folder / WEIGHTS).write_bytes(b"two")  # the copy
    with pytest.raises(InputError, match=f"{WEIGHTS} has changed"):
        local_bundle(store.uri)


def test_copy_of_a_personal_bundle_is_removed_after_its_adapter_was_read(s3_uri: str, tmp_path: Path) -> None:
    base = materialise(load_preset("mini"), tmp_path / "base")
    upload_bundle(personal_bundle(base, tmp_path / "mine", 0), store := open_store(s3_uri))
    found = locate_bundle(store.uri)
    with opened_adapter(found) as folder:
        assert folder is not None
        assert (folder / "adapter_model.safetensors").is_file()
    assert not folder.exists()
    with (
        pytest.raises(InputError, match="the bundle here was replaced"),
        opened_adapter(replace(found, sha256="0" * 64)),
    ):
        pass


@pytest.mark.parametrize("damage", ["changed", "added", "removed", "index"])
def test_damaged_bundle_is_refused(store: Store, damage: str) -> None:
    if damage == "changed":
        store.write(WEIGHTS, b"two")
    elif damage == "added":
        store.write("mllm/adapter_config.json", b"{}")
    elif damage == "removed":
        store.delete(WEIGHTS)
    else:
        index = b'{"weight_map": {"a": ".hidden"}}'
        store.write(f"{WEIGHTS}.index.json", index)
        manifest = json.loads(store.read("bundle.json"))
        manifest["components"][f"{WEIGHTS}.index.json"] = hashlib.sha256(index).hexdigest()
        store.write("bundle.json", json.dumps(manifest).encode())
    for door in (local_bundle, verify_bundle):
        with pytest.raises(InputError, match=r"has changed|does not list|is missing") as refused:
            door(store.uri)
        assert store.uri in str(refused.value)


def test_upload_replaces_what_a_killed_one_left(store: Store, tmp_path: Path) -> None:
    store.delete("bundle.json")
    store.write("transformer/model-00001-of-00002.safetensors", b"of another dtype")
    folder = tmp_path / "bundle"
    made = bundle(str(tmp_path), "x")
    (tmp_path / "x" / "bundle").rename(folder)
    upload_bundle(folder, store)
    assert verify_bundle(store.uri) == made.sha256
    assert {info.key for info in store.list()} == {"bundle.json", WEIGHTS}
