"""Listing of folders: links are followed within the store, and every other name has a reason."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.storage import ObjectInfo, open_store
from lookalike.storage.store import survey
from lookalike.storage.walk import walk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one name of each kind."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.tar").write_bytes(b"secret")
    folder = tmp_path / "root"
    (folder / "real" / "deep").mkdir(parents=True)
    (folder / "real" / "deep" / "a.tar").write_bytes(b"a")
    (folder / "b.tar").write_bytes(b"b")
    (folder / "empty").mkdir()
    (folder / "to-file.tar").symlink_to("b.tar")
    (folder / "to-folder").symlink_to("real/deep")
    (folder / "out.tar").symlink_to(tmp_path / "elsewhere" / "secret.tar")
    (folder / "out-folder").symlink_to(tmp_path / "elsewhere")
    (folder / "real" / "up").symlink_to("../..")
    (folder / "dangling.tar").symlink_to("gone")
    (folder / "real" / "loop").symlink_to("..")
    (folder / "self").symlink_to("self")
    (folder / ".part-0123").write_bytes(b"half")
    os.mkfifo(folder / "pipe.tar")
    return folder


def named(entries: Iterator[Any]) -> dict[str, str]:
    return {entry.key: "" if isinstance(entry, ObjectInfo) else entry.reason for entry in entries}


def test_every_name_is_an_object_or_has_a_reason(root: Path) -> None:
    assert named(survey(open_store(str(root)))) == {
        "b.tar": "",
        "real/deep/a.tar": "",
        "to-file.tar": "",
        "to-folder/a.tar": "",
        "empty": "empty_folder",
        "out.tar": "link_outside",
        "out-folder": "link_outside",
        "real/up": "link_outside",
        "dangling.tar": "dangling_link",
        "real/loop": "link_loop",
        "self": "link_loop",
        ".part-0123": "half_written",
        "pipe.tar": "special_file",
    }


def test_list_includes_linked_files_but_not_linked_folders(root: Path) -> None:
    keys = [info.key for info in open_store(str(root)).list()]
    assert keys == ["b.tar", "out.tar", "real/deep/a.tar", "to-file.tar"]


@pytest.mark.parametrize("prefix", ["", "r", "real", "real/", "real/d", "b", "nothing", "nothing/at/all", "b.tar/x"])
def test_prefix_selects_keys_that_begin_with_it(root: Path, prefix: str) -> None:
    everything = [info.key for info in open_store(str(root)).list()]
    assert [info.key for info in open_store(str(root)).list(prefix)] == [k for k in everything if k.startswith(prefix)]


def test_only_folders_of_the_prefix_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(Path(path).name) or scan(path))  # type: ignore[func-returns-value]
    assert [info.key for info in open_store(str(root)).list("b")] == ["b.tar"]
    assert opened == ["root"]


@pytest.fixture
def locked(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make listing ``real`` fail. The error is simulated, since root ignores permissions."""
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "real":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return root


def test_unreadable_folder_is_named_and_not_taken_for_an_empty_one(locked: Path) -> None:
    store = open_store(str(locked))
    assert named(survey(store))["real"] == "unreadable"
    for listing in (
        store.list(),
        store.list("real/"),
        survey(store, "real/"),
        survey(open_store(str(locked / "real"))),
    ):
        with pytest.raises(InputError, match="cannot be listed"):
            list(listing)
    assert [info.key for info in store.list("b")] == ["b.tar"]


def test_crossing_links_do_not_multiply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.storage.walk._MAX_LINKED", 100)
    for i in range(30):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "x.tar").write_bytes(b"x")
        if i:
            (tmp_path / f"{i - 1}" / "one").symlink_to(f"../{i}")
            (tmp_path / f"{i - 1}" / "other").symlink_to(f"../{i}")
    counts = Counter(named(walk(tmp_path, follow=True)).values())
    assert counts[""] <= 130
    assert counts["too_many_links"] > 0


def test_socket_is_a_special_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.tar")
        assert named(walk(tmp_path, follow=True)) == {"s.tar": "special_file"}
        assert list(open_store(str(tmp_path)).list()) == []
