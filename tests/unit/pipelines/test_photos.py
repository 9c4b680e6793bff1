"""What a customer brings: each error's advice, followed literally, makes the same command work."""

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import InputError
from lookalike.storage import open_store
from pipelines.finetune.photos import PhotoSet, check_number, open_photos, photo_set


def _jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def _add(folder: Path, names: str, first: int, count: int) -> None:
    for number in range(first, first + count):
        file = folder / names.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_jpeg(number))


def _zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            file.write(path, path.relative_to(folder).as_posix())


def _look(folder: Path) -> PhotoSet:
    return photo_set(open_store(str(folder)), str(folder))


def _second_subject_removed(folder: Path) -> None:
    for file in (folder / "dog").iterdir():
        file.unlink()


def _saved_as_jpeg(folder: Path) -> None:
    for number, file in enumerate(sorted((folder / "bear").iterdir())):
        file.unlink()
        (folder / "bear" / f"{number}.jpg").write_bytes(_jpeg(number))


@pytest.mark.usefixtures("without_heic")
@pytest.mark.parametrize(
    ("broken", "message", "advice"),
    [
        (lambda f: None, "no photos.*with 4 to 20", lambda f: _add(f, "bear/{}.jpg", 0, 4)),
        (
            lambda f: _add(f, "bear/{}.jpg", 0, 3),
            "photos is 3, .*add 1 or more",
            lambda f: _add(f, "bear/{}.jpg", 3, 1),
        ),
        (
            lambda f: _add(f, "bear/{}.jpg", 0, 1),
            "photos is 1, .*add 3 or more",
            lambda f: _add(f, "bear/{}.jpg", 1, 3),
        ),
        (
            lambda f: _add(f, "bear/{:02d}.jpg", 0, 22),
            "photos is 22, .*remove 2",
            lambda f: [(f / "bear" / name).unlink() for name in ("00.jpg", "21.jpg")],
        ),
        (
            lambda f: (_add(f, "bear/{}.jpg", 0, 4), _add(f, "dog/{}.jpg", 4, 4)),
            "photos of 2 subjects: bear, dog.*leave one subject's folder",
            _second_subject_removed,
        ),
        (
            lambda f: (_add(f, "{}.jpg", 0, 4), _add(f, "more/{}.jpg", 4, 4)),
            r"photos of 2 subjects: \(no folder\), more",
            lambda f: [file.unlink() for file in (f / "more").iterdir()],
        ),
        (
            lambda f: (f / "photos.zip").write_bytes(b"PK"),
            r"a zip archive and no photos.*name .*/photos\.zip as --photos",
            lambda f: _add(f, "{}.jpg", 0, 4),
        ),
        (lambda f: _add(f, "bear/IMG_{}.HEIC", 0, 5), "5 HEIC.*lookalike\\[heic\\]", _saved_as_jpeg),
        (lambda f: _add(f, "bear/{}.avif", 0, 5), "5 AVIF.*lookalike\\[heic\\].*save them as JPEG", _saved_as_jpeg),
        (
            lambda f: (_add(f, "bear/{}.jpg", 0, 2), _add(f, "bear/{}.dng", 2, 2)),
            "2 photos can be read.*2 DNG",
            _saved_as_jpeg,
        ),
    ],
)
def test_fix_of_each_error_makes_the_same_command_work(
    broken: Callable[[Path], object],
    message: str,
    advice: Callable[[Path], object],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    broken(folder)
    with pytest.raises(InputError, match=message):
        _look(folder)
    advice(folder)
    assert _look(folder).sha256


@pytest.mark.parametrize(
    ("names", "folder"), [("{}.jpg", ""), ("bear/{}.jpg", "bear"), ("export/my bear/{}.jpg", "my bear")]
)
def test_photos_may_lie_in_the_folder_itself_or_in_one_below_it(tmp_path: Path, names: str, folder: str) -> None:
    _add(tmp_path, names, 0, 5)
    found = _look(tmp_path)
    assert (found.folder, found.number, len(found.photos)) == (folder, 5, 5)


def test_a_zip_archive_is_the_same_set_of_photos_as_its_folder(tmp_path: Path) -> None:
    _add(tmp_path / "photos", "bear/{}.jpg", 0, 5)
    (tmp_path / "photos" / "bear" / "notes.pdf").write_bytes(b"%PDF")
    (tmp_path / "photos" / "bear" / "0.txt").write_text("a bear")
    _zip(tmp_path / "photos", tmp_path / "upload.zip")
    zipped = photo_set(open_photos(str(tmp_path / "upload.zip")), "upload.zip")
    assert zipped == _look(tmp_path / "photos")
    assert zipped.skipped == {"bear/notes.pdf": "neither a photo nor the sidecar of one"}
    with zipfile.ZipFile(tmp_path / "upload.zip", "a") as archive:
        archive.writestr("__MACOSX/bear/._0.jpg", b"x")
        archive.writestr("../0.jpg", b"x")
    hostile = photo_set(open_photos(str(tmp_path / "upload.zip")), "upload.zip")
    assert (hostile.sha256, hostile.photos) == (zipped.sha256, zipped.photos)
    assert hostile.skipped.keys() - zipped.skipped.keys() == {"../0.jpg"}


def test_a_damaged_photo_in_an_archive_has_a_reason_and_a_damaged_archive_is_an_error(tmp_path: Path) -> None:
    _add(tmp_path / "photos", "{}.jpg", 0, 5)
    archive = tmp_path / "upload.zip"
    _zip(tmp_path / "photos", archive)
    data = bytearray(archive.read_bytes())
    data[data.index(b"\xff\xd8") + 40] ^= 1
    archive.write_bytes(data)
    found = photo_set(open_photos(str(archive)), "upload.zip")
    assert found.number == 4
    assert ["damaged" in reason for reason in found.skipped.values()] == [True]
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"not a readable zip archive.*make the archive again"):
        photo_set(open_photos(str(archive)), "upload.zip")
    (tmp_path / "one.jpg").write_bytes(_jpeg(1))
    with pytest.raises(InputError, match="one file, and not a zip"):
        open_photos(str(tmp_path / "one.jpg"))


def test_photo_set_is_identified_by_content_not_location(tmp_path: Path) -> None:
    _add(tmp_path / "a", "bear/{}.jpg", 0, 4)
    before = _look(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "moved")
    (tmp_path / "moved" / ".DS_Store").write_bytes(b"what a file manager leaves")
    assert _look(tmp_path / "moved") == before
    _add(tmp_path / "moved", "bear/{}.jpg", 4, 1)
    more = _look(tmp_path / "moved")
    (tmp_path / "moved" / "bear" / "4.jpg").write_bytes(_jpeg(5))
    assert len({before.sha256, more.sha256, _look(tmp_path / "moved").sha256}) == 3


@pytest.mark.parametrize("name", ["shard.tar", "SHARD.TAR", "shard.tgz", "shard.tar.zst"])
def test_raw_shards_with_loose_photos_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / name, "w"):
        pass
    assert _look(tmp_path).raw
    _add(tmp_path, "bear/{}.jpg", 0, 4)
    with pytest.raises(InputError, match="shards and loose photos"):
        _look(tmp_path)


@pytest.mark.parametrize("number", [4, 20])
def test_smallest_and_largest_number_of_photos_are_accepted(number: int) -> None:
    check_number(number, "photos")


def test_folder_with_too_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / str(number)).touch()
    with pytest.raises(InputError, match="1001 files"):
        _look(tmp_path)


def test_a_photo_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    _add(tmp_path / "mine", "bear/{}.jpg", 0, 4)
    _add(tmp_path / "theirs", "dog/{}.jpg", 0, 1)
    (tmp_path / "mine" / "bear" / "4.jpg").symlink_to(tmp_path / "theirs" / "dog" / "0.jpg")
    with pytest.raises(InputError, match=r"a link leads out of the store.*bear/4\.jpg"):
        _look(tmp_path / "mine")
    (tmp_path / "mine" / "bear" / "4.jpg").unlink()
    (tmp_path / "mine" / "bear" / "4.jpg").symlink_to("0.jpg")
    assert not _look(tmp_path / "mine").raw


def test_raw_shards_are_hashed_without_holding_them(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        file.truncate(1 << 30)
    code = (
        "import resource\nfrom lookalike.storage import open_store\nfrom pipelines.finetune.photos import photo_set\n"
    )
    code += (
        f"before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nphoto_set(open_store({str(tmp_path)!r}), '')\n"
    )
    code += "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 100
