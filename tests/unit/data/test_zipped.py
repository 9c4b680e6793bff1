"""A zip archive from outside: what is in it is read or has a reason, and nothing of it is unpacked to disk."""

import io
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lookalike.data import zipped
from lookalike.data.zipped import ZipStore, open_zip
from lookalike.errors import ConfigError, InputError
from lookalike.storage import open_store
from lookalike.storage.walk import Skipped


def _zip(folder: Path, files: dict[str, bytes], **options: int) -> ZipStore:
    with zipfile.ZipFile(folder / "photos.zip", "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=options.get("compression"))
    return ZipStore(open_store(str(folder)), "photos.zip")


def _skipped(store: ZipStore) -> dict[str, str]:
    return {entry.key: entry.reason for entry in store.survey() if isinstance(entry, Skipped)}


def test_files_are_read_whole_and_by_range(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(2_560_000)
    store = _zip(tmp_path, {"mug/b.jpg": data, "mug/a.jpg": b"x"}, compression=zipfile.ZIP_DEFLATED)
    assert [(info.key, info.size) for info in store.list()] == [("mug/a.jpg", 1), ("mug/b.jpg", len(data))]
    assert store.read("mug/b.jpg") == data
    assert store.read_range("mug/b.jpg", 1_500_000, 700) == data[1_500_000:1_500_700]
    assert (store.exists("mug/a.jpg"), store.exists("nothing")) == (True, False)
    with pytest.raises(ConfigError, match="read only"):
        store.write("mug/c.jpg", b"")
    with pytest.raises(InputError, match="no such file"):
        store.read("nothing")


def test_an_archive_is_read_from_s3_by_ranges(s3_uri: str, tmp_path: Path) -> None:
    _zip(tmp_path, {f"{number}.jpg": bytes([number]) * 3_000_000 for number in range(4)})
    remote = open_store(s3_uri)
    remote.upload("photos.zip", tmp_path / "photos.zip")
    store = open_zip(remote, "photos.zip")
    assert store is not None
    assert [store.read(info.key)[:1] for info in store.list()] == [b"\0", b"\1", b"\2", b"\3"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../etc/passwd.jpg", "leads out"),
        ("mug/../../a.jpg", "leads out"),
        ("/etc/a.jpg", "relative path"),
        ("C:/a.jpg", "relative path"),
        ("mug\\a\n.jpg", "relative path"),
        ("mug//a.jpg", "relative path"),
    ],
)
def test_a_name_that_leads_elsewhere_has_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    store = _zip(tmp_path, {name: b"x", "mug/01.jpg": b"y"})
    assert [info.key for info in store.list()] == ["mug/01.jpg"]
    assert [reason in each for each in _skipped(store).values()] == [True]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["photos.zip"]


def test_links_repeated_names_and_the_files_of_a_mac(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        link = zipfile.ZipInfo("mug/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.mkdir("mug")
        for name in ("mug/01.jpg", "mug/01.jpg", "__MACOSX/mug/._01.jpg", "mug/.DS_Store"):
            archive.writestr(name, name)
    store = ZipStore(open_store(str(tmp_path)), "photos.zip")
    assert [info.key for info in store.list()] == ["mug/01.jpg"]
    assert [key.partition(" ")[0] for key in _skipped(store)] == ["mug/01.jpg", "mug/link.jpg"]
    assert "link" in _skipped(store)["mug/link.jpg"]


def test_bombs_are_refused_before_they_are_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _zip(tmp_path, {"bomb.jpg": bytes(50 << 20), "a.jpg": b"x"}, compression=zipfile.ZIP_DEFLATED)
    assert "100 times its size" in _skipped(store)["bomb.jpg"]
    with pytest.raises(InputError, match="no such file"):
        store.read("bomb.jpg")
    monkeypatch.setattr(zipped, "_MAX_TOTAL_BYTES", 10)
    with pytest.raises(InputError, match="unpack to"):
        list(_zip(tmp_path, {"a.jpg": b"x" * 11}).list())
    monkeypatch.setattr(zipped, "_MAX_FILES", 3)
    with pytest.raises(InputError, match="4 entries, more than 3"):
        list(_zip(tmp_path, {f"{number}.jpg": b"" for number in range(4)}).list())
    monkeypatch.setattr(zipped, "_MAX_DIRECTORY_BYTES", 1000)
    with pytest.raises(InputError, match="list of files has more than"):
        list(_zip(tmp_path, {"n" * 1500: b""}).list())


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    data = bytearray(_zip(tmp_path, {"a.jpg": b"x"}).outer.read("photos.zip"))
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<H", data, at + 8, 1)
    (tmp_path / "photos.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"encrypted.*without a password"):
        list(ZipStore(open_store(str(tmp_path)), "photos.zip").list())


def test_damaged_members_and_archives_are_errors_that_name_them(tmp_path: Path) -> None:
    store = _zip(tmp_path, {"a.jpg": b"abcdefgh" * 100, "b.jpg": b"y"})
    data = bytearray(store.outer.read("photos.zip"))
    data[data.index(b"abcdefgh")] ^= 1
    (tmp_path / "photos.zip").write_bytes(data)
    store = ZipStore(store.outer, "photos.zip")
    with pytest.raises(InputError, match=r"damaged.*CRC.*photos\.zip!/a\.jpg"):
        store.read("a.jpg")
    assert store.read("b.jpg") == b"y"
    for broken in (bytes(data[: len(data) // 2]), b"", b"PK\x03\x04 not a zip"):
        (tmp_path / "photos.zip").write_bytes(broken)
        with pytest.raises(InputError, match="not a readable zip"):
            list(ZipStore(store.outer, "photos.zip").list())


def test_every_prefix_and_every_changed_byte_of_an_archive_is_read_or_refused(tmp_path: Path) -> None:
    whole = _zip(tmp_path, {"mug/01.jpg": b"abc", "mug/02.jpg": b"def"}).outer.read("photos.zip")
    for place in range(len(whole)):
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            (tmp_path / "photos.zip").write_bytes(data)
            store = ZipStore(open_store(str(tmp_path)), "photos.zip")
            try:
                for info in store.list():
                    store.read(info.key)
            except InputError:
                pass


def test_names_in_another_encoding_are_labels(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mug/XXXX.jpg", b"x")
    (tmp_path / "photos.zip").write_bytes(buffer.getvalue().replace(b"XXXX", "写".encode("shift-jis") + b"~~"))
    assert len(list(ZipStore(open_store(str(tmp_path)), "photos.zip").list())) == 1


def test_a_file_is_an_archive_by_its_name_or_its_content(tmp_path: Path) -> None:
    _zip(tmp_path, {"a": b""})
    (tmp_path / "photos.zip").rename(tmp_path / "upload")
    store = open_store(str(tmp_path))
    store.write("broken.ZIP", b"")
    store.write("text", b"t")
    assert [open_zip(store, key) is not None for key in ("upload", "broken.ZIP", "text")] == [True, True, False]
