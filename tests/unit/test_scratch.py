"""Temporary folders are removed with their block, their process or their job."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lookalike.documents import decoding, parse_json, parse_object
from lookalike.errors import InputError
from lookalike.scratch import JOB_VARIABLE, SHORT, kept_folder, scratch, sweep


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def _child(folder: Path, code: str, job: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {"TMPDIR": str(folder), JOB_VARIABLE: job}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


_KEEP = """
from lookalike.scratch import kept_folder
(kept_folder("x") / "a").write_text("1")
print("ready", flush=True)
"""


def test_scratch_folder_is_removed_after_its_block() -> None:
    with scratch("a") as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()
    with pytest.raises(KeyError), scratch("a") as folder:
        raise KeyError
    assert not folder.exists()


def test_kept_folder_is_removed_with_its_process(tmp_path: Path) -> None:
    assert _child(tmp_path, _KEEP).wait(20) == 0
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_killed_process_are_removed_by_the_next(tmp_path: Path, temporary: Path) -> None:
    child = _child(tmp_path, f"{_KEEP}import time; time.sleep(60)")
    left = set(tmp_path.glob("lookalike-*"))
    assert len(left) == 1
    sweep()
    assert left <= set(tmp_path.iterdir())  # its process is alive
    child.send_signal(signal.SIGKILL)
    child.wait(20)
    (tmp_path / "lookalike-of-mine").mkdir()  # has no lock file of this module
    sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["lookalike-of-mine"]


def test_end_of_a_job_waits_for_folders_of_its_workers(tmp_path: Path, temporary: Path) -> None:
    worker = _child(tmp_path, f"{_KEEP}import time, os; time.sleep(0.5); os._exit(0)", job="mine")
    other = _child(tmp_path, f"{_KEEP}import time; time.sleep(60)", job="another's")
    try:
        started = time.monotonic()
        sweep("mine", wait_s=20)
        assert time.monotonic() - started < 15  # does not wait for another job's
        assert len(list(tmp_path.iterdir())) == 1
        assert worker.wait(20) == 0
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only file system", "/elsewhere")],
)
def test_full_disk_is_an_input_error(error: OSError) -> None:
    with pytest.raises(InputError, match="TMPDIR"), scratch("a"):
        raise error


def test_scratch_folder_that_cannot_be_made_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(InputError, match="No space left"):
        kept_folder("a")


def test_error_unrelated_to_the_disk_is_raised_unchanged() -> None:
    with pytest.raises(FileNotFoundError), scratch("a"):
        Path("/no/such/file").read_text()


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"[]", b"1", b"null", b"{}", b'{"b": 1}', b"nan"],
)
def test_damaged_document_is_an_error_that_names_it(data: bytes) -> None:
    with pytest.raises(InputError, match=r"file:///x/run\.json"):
        parse_object(data, "file:///x/run.json", "a")


def test_errors_of_libraries_name_the_file() -> None:
    assert parse_json(b'"\\ud83d\\ude00"', "x") == "\U0001f600"
    with pytest.raises(InputError, match="surrogates not allowed"):
        parse_json(b'{"a": "\\uD800"}', "x")
    assert parse_json(b"[1]", "x") == [1]
    with (
        pytest.raises(InputError, match=r"not a Parquet table: ZeroDivisionError.*'x'.*again"),
        decoding("a Parquet table", "x"),
    ):
        1 / 0  # noqa: B018


def test_a_folder_of_a_process_that_was_killed_before_it_named_it_is_removed(temporary: Path) -> None:
    old, new = temporary / ".lookalike-abcdefgh", temporary / ".lookalike-ijklmnop"
    other = temporary / ".lookalike-save-qrstuvwx"  # of a bundle that is being saved
    for folder in (old, new, other):
        (folder / "x").mkdir(parents=True)
    for folder in (old, other):
        os.utime(folder, (0, 0))
    sweep()
    assert set(temporary.iterdir()) == {new, other}


def test_folders_in_the_short_place_are_removed_with_their_process(tmp_path: Path) -> None:
    code = """
from lookalike.scratch import SHORT, kept_folder
print("ready\\n" + str(kept_folder("x", SHORT).parent), flush=True)
"""
    ended, killed = _child(tmp_path, code), _child(tmp_path, f"{code}import time; time.sleep(60)")
    folders = [Path(child.stdout.readline().strip()) for child in (ended, killed) if child.stdout is not None]
    assert all(folder.parent == Path(SHORT) for folder in folders)
    assert ended.wait(20) == 0
    assert [folder.is_dir() for folder in folders] == [False, True]
    sweep()
    assert folders[1].is_dir()  # its process is alive
    killed.kill()
    killed.wait(20)
    sweep()
    assert not folders[1].exists()
