"""Links in a store are followed within it, and out of it only into the folders of LOOKALIKE_LINK_ROOTS."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lookalike.errors import InputError
from lookalike.storage import Store, open_store
from lookalike.storage.store import survey
from lookalike.storage.walk import LINK_ROOTS, Skipped

WORDS = "a link leads out of the store"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a file of its own, and links to another tenant's folder and file."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret.txt").write_text("secret")
    root = tmp_path / "store"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "own.txt").write_text("own")
    (root / "file.txt").symlink_to(tmp_path / "other" / "secret.txt")
    (root / "folder").symlink_to(tmp_path / "other")
    (root / "within").symlink_to("inner")
    return open_store(str(root))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.read("file.txt"),
        lambda store: store.read("folder/secret.txt"),
        lambda store: store.read_range("file.txt", 0, 1),
        lambda store: store.exists("folder/secret.txt"),
        lambda store: store.download("file.txt", store.root / "copy"),
        lambda store: store.child("folder"),
        lambda store: list(store.list("folder/")),
        lambda store: store.write("folder/new.txt", b"mine"),
        lambda store: store.create("folder/new.txt", b"mine"),
        lambda store: store.write("folder/deep/new.txt", b"mine"),
        lambda store: store.upload("folder/new.txt", store.root / "inner" / "own.txt"),
        lambda store: store.delete("folder/secret.txt"),
    ],
)
def test_link_out_of_the_store_is_refused(call: Callable[[Store], object], store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=WORDS):
        call(store)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["secret.txt"]


def test_links_within_the_store_are_followed(store: Store) -> None:
    assert store.read("within/own.txt") == b"own"
    store.write("within/new.txt", b"new")
    assert store.child("within").read("new.txt") == b"new"


def test_link_at_a_key_is_replaced_or_removed(store: Store, tmp_path: Path) -> None:
    store.write("file.txt", b"mine")
    assert store.read("file.txt") == b"mine"
    (tmp_path / "store" / "again.txt").symlink_to(tmp_path / "other" / "secret.txt")
    store.delete("again.txt")
    assert (tmp_path / "other" / "secret.txt").read_text() == "secret"


def test_root_of_a_store_can_be_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "store")
    assert open_store(str(tmp_path / "link")).read("inner/own.txt") == b"own"


def test_links_into_link_roots_are_followed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = {entry.key for entry in survey(store) if isinstance(entry, Skipped)}
    assert skipped == {"file.txt", "folder"}
    monkeypatch.setenv(LINK_ROOTS, f"/nowhere:{tmp_path / 'other'}")
    assert store.read("folder/secret.txt") == b"secret"
    store.child("folder").write("new.txt", b"mine")
    assert not [entry for entry in survey(store) if isinstance(entry, Skipped)]
    monkeypatch.setenv(LINK_ROOTS, str(tmp_path / "oth"))  # is not a parent folder of it
    with pytest.raises(InputError, match=WORDS):
        store.read("folder/secret.txt")


def test_hub_cache_snapshot_is_read_but_its_blobs_cannot_lead_out(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "0a1b"
    (snapshot / "vae").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "1234").write_text("{}")
    (snapshot / "vae" / "config.json").symlink_to("../../../blobs/1234")
    assert open_store(str(snapshot)).read("vae/config.json") == b"{}"
    assert open_store(str(snapshot)).child("vae").read("config.json") == b"{}"
    (tmp_path / "secret").write_text("secret")
    (repo / "blobs" / "5678").symlink_to(tmp_path / "secret")
    (snapshot / "secret.json").symlink_to("../../blobs/5678")
    (snapshot / "refs.json").symlink_to("../../refs/main")
    for name in ("secret.json", "refs.json"):
        with pytest.raises(InputError, match=WORDS):
            open_store(str(snapshot)).read(name)
