"""A purge removes everything below a prefix, follows no link, and touches nothing beside it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lookalike.errors import ConfigError, InputError
from lookalike.storage import open_store
from lookalike.storage.purge import _remove_local, entries, pages, purge

_NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """``mug`` with all kinds of names, ``mug2`` beside it, and a folder elsewhere that links lead to."""
    for name in (
        "mug/a/one.txt",
        "mug/a/b/two.txt",
        "mug/.part-0123",
        "mug/.hidden/x",
        "mug2/three.txt",
        "else/four.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "mug" / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "mug" / "to-folder").symlink_to(tmp_path / "else")
    (tmp_path / "mug" / "to-file").symlink_to(tmp_path / "else" / "four.txt")
    (tmp_path / "mug" / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "mug" / "pipe")
    return tmp_path


def test_everything_below_goes_and_nothing_else(root: Path) -> None:
    mug = open_store(str(root / "mug"))
    kinds = [entry.kind for page in entries(mug) for entry in page]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        **{"folder": 5, "link": 3, "object": 4, "special": 1}
    }
    assert purge(mug) == len(kinds)
    assert sorted(path.name for path in root.iterdir()) == ["else", "mug2"]
    assert (root / "else" / "four.txt").read_text() == "else/four.txt"
    assert (root / "mug2" / "three.txt").exists()
    assert purge(mug) == 0


def test_kept_keys_stay(root: Path) -> None:
    mug = open_store(str(root / "mug"))
    purge(mug, keep="a/b/")
    assert [path for path in (root / "mug").rglob("*") if path.is_file()] == [root / "mug" / "a" / "b" / "two.txt"]


def test_prefix_that_is_a_link_is_refused(root: Path) -> None:
    (root / "linked").symlink_to(root / "mug2")
    with pytest.raises(ConfigError, match=r"symbolic link to .*mug2"):
        purge(open_store(str(root / "linked")))
    assert (root / "mug2" / "three.txt").exists()


def test_link_in_the_place_of_a_folder_after_the_listing_is_not_followed(root: Path) -> None:
    mug = open_store(str(root / "mug"))
    listed = list(entries(mug))
    (root / "else" / "b").mkdir()
    (root / "else" / "b" / "two.txt").write_text("theirs")
    (root / "mug" / "a").rename(root / "moved")
    (root / "mug" / "a").symlink_to(root / "else")
    for page in listed:
        _remove_local(mug, [entry for entry in page if entry.key.startswith("a/")])  # type: ignore[arg-type]
    assert (root / "else" / "b" / "two.txt").read_text() == "theirs"


def test_pages_list_objects_also_below_a_linked_root(root: Path) -> None:
    (root / "linked").symlink_to(root / "mug")
    keys = {info.key for page in pages(open_store(str(root / "linked"))) for info in page}
    assert keys == {"a/one.txt", "a/b/two.txt", ".part-0123", ".hidden/x"}


@contextmanager
def _unprivileged(*owned: Path) -> Iterator[None]:
    """Work as a user who owns ``owned`` and may not do everything: as nobody, if this is root."""
    if os.geteuid() != 0:
        yield
        return
    for path in owned:
        os.chown(path, _NOBODY, _NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folder_that_may_not_be_changed_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        home = Path(name) / "mug"
        home.mkdir()
        (home / "one.txt").write_text("1")
        home.chmod(0o500)
        with _unprivileged(Path(name), home), pytest.raises(InputError, match="cannot remove"):
            purge(open_store(str(home)))
        assert (home / "one.txt").exists()
        home.chmod(0o700)
