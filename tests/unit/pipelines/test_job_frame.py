"""The frame of every job: an exception of its body becomes a message and an exit code, without a traceback."""

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import field
from pathlib import Path

import pytest

from lookalike.config import parse
from lookalike.errors import BusyError, ConfigError, InputError, StoppedError
from lookalike.values import MAX_COUNT, MAX_SEED, Seed, configuration
from pipelines.entry import OPT_OUT, run_job, run_subcommand

_NINE = [b"a%d: &a%d [%s]\n" % (n + 1, n + 1, b", ".join([b"*a%d" % n] * 9)) for n in range(9)]
_BOMB = b"".join([b"a0: &a0 [1, 1]\n", *_NINE])
"""A small file that expands to 10^9 settings."""


@configuration()
class _Config:
    """What the test runs."""

    out: str = "x"
    """A location."""
    prompt: list[str] = field(default_factory=list)
    """Texts."""
    steps: int = 3
    """A count."""
    rate: float = 0.5
    """A share."""
    seed: Seed = 0
    """A seed."""
    size: tuple[int, int] = (1, 2)
    """A pair."""
    base: str | None = None
    """May be left out."""


@pytest.fixture(autouse=True)
def _own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("LOOKALIKE_JOB", "")
    monkeypatch.setattr(sys, "argv", ["job"])


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("no such object", value="x", fix="check the location"), 2, "error: no such object"),
        (StoppedError("stopped", fix="again"), 143, "stopped"),
        (BusyError("another works here", fix="wait"), 4, "another"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "Too many open files"),
        (MemoryError(), 1, "out of memory"),
        (ValueError("surprise\nsecond line"), 1, "internal error, ValueError: surprise; .*LOOKALIKE_LOG_LEVEL=DEBUG"),
        (InputError("the file \udcff", value="\ud800", fix="x"), 2, "error: the file"),
    ],
)
def test_each_error_has_its_message_and_code(error: BaseException, code: int, words: str, capsys) -> None:
    def body(config: _Config) -> int:
        raise error

    assert run_job(_Config, body, None) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert len(shown.splitlines()) == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(shown)


def _job(folder: Path, body: str) -> subprocess.Popen[bytes]:
    code = f"""
import sys, time
from dataclasses import dataclass
from lookalike.scratch import kept_folder, scratch
from pipelines.entry import run_job
@dataclass(frozen=True)
class Config:
    "A job."
    x: int = 0
    "A number."
def body(config):
{body}
sys.argv = ["job"]
raise SystemExit(run_job(Config, body, None))
"""
    root = Path(__file__).parents[3]
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": f"{root}:{root / 'platform'}"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_terminated_job_leaves_no_temporary_folder(number: int, code: int, tmp_path: Path) -> None:
    job = _job(
        tmp_path, "    kept_folder('a')\n    with scratch('b'):\n        print('in', flush=True); time.sleep(60)"
    )
    assert job.stdout is not None
    assert job.stdout.readline() == b"in\n"
    assert any(tmp_path.iterdir())
    job.send_signal(number)
    _, shown = job.communicate(timeout=30)
    assert job.returncode == code, shown
    assert b"Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    job = _job(tmp_path, "    time.sleep(0.3)\n    for _ in range(100_000): print('line')")
    assert job.stdout is not None
    job.stdout.close()
    assert job.stderr is not None
    assert b"Traceback" not in job.stderr.read()
    assert job.wait(30) == 141


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", str(2**64)],
        ["--seed=-1"],
        ["--steps", str(10**30)],
        ["--steps", "9" * 5000],
        ["--rate=nan"],
        ["--rate=.inf"],
        ["--rate", "1e400"],
        ["--out="],
        ["--base="],
        ["--out", "a\0b"],
        ["--out", "/data/\udcff"],
        ["--size", f"[1, {10**30}]"],
        ["--steps", "true"],
        ["--steps", "1.5"],
    ],
)
def test_invalid_value_is_refused(argv: list[str], capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["job", *argv])
    try:
        code = run_job(_Config, lambda config: 0, None)
    except SystemExit as end:  # of the parser, before the frame's body
        code = int(str(end.code))
    shown = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in shown
    assert argv[0].partition("=")[0].strip("-") in shown or "integer" in shown


@pytest.mark.parametrize(
    "values",
    [
        *({"steps": True}, {"steps": 1.0}, {"steps": "1"}, {"rate": float("nan")}, {"seed": MAX_SEED + 1}),
        *({"prompt": "a"}, {"steps": MAX_COUNT + 1}, {"prompt": [1]}, {"size": (1, 2, 3)}, {"base": 1}, {"out": None}),
    ],
)
def test_configuration_is_checked_at_construction(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        _Config(**values)


@pytest.mark.parametrize(
    "text",
    ["a cat 🐈", 'say "hi"', "[a", "-5 degrees", "a=b", "--", "{x}", "ü\u2028ä", "it's 100%", "a\x7fb\x85", "a\nb", ""],
)
def test_prompt_is_parsed_verbatim(text: str) -> None:
    assert parse(_Config, [f"--prompt={text}"]).prompt == [text]
    assert parse(_Config, ["--prompt", text, "--prompt", "b"]).prompt == [text, "b"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00\x01\xff", "not valid YAML"),
        (b"steps: 1\nseed: 2\nsteps: 3\n", "line 3 repeats a key"),
        (b"image:\n  a: 1\n  a: 2\n", "line 3 repeats a key"),
        (b"a: [", "line 1"),
        (b"[1, 2]", "not a mapping of settings"),
        (b"just text", "not a mapping of settings"),
        (b"&a [*a]", "not a mapping of settings"),
        (b"x: &x {b: *x}", "anchors that refer to themselves"),
        (_BOMB, "settings"),
        (b"[" * 5000, "not valid YAML"),
        (b"1: 2", "not text"),
        (b"steps: " + b"9" * 5000, "not valid YAML"),
        (None, "No such file"),
        ("folder", "Is a directory"),
    ],
)
def test_a_broken_configuration_file_is_named(data: bytes | str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    if data == "folder":
        file.mkdir()
    elif isinstance(data, bytes):
        file.write_bytes(data)
    with pytest.raises(ConfigError, match=words) as refused:
        parse(_Config, ["--config", str(file)])
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_output_that_the_terminal_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert run_job(_Config, lambda config: print("subject 犬 \udce9"), None) == 0
    assert out.buffer.getvalue().split()[:2] == [b"subject", b"\\u72ac"]


def test_libraries_send_no_telemetry_and_leave_no_folder(tmp_path: Path) -> None:
    job = """
import sys
from dataclasses import dataclass
from pipelines.entry import run_job

@dataclass(frozen=True)
class Config:
    "Nothing."

def body(config):
    import onnxruntime  # with its telemetry it leaves `.ses`, the identity of its session
    import torch._inductor.codecache

raise SystemExit(run_job(Config, body, "a job"))
"""
    environment = {name: value for name, value in os.environ.items() if name not in {*OPT_OUT, "CI"}}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", job], env={**environment, "TMPDIR": str(tmp_path)}, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


@configuration()
class _OtherConfig:
    """What the other subcommand does."""

    id: str
    """An id."""


def _print_steps(config: _Config) -> None:
    print(f"steps={config.steps}")


def _print_id(config: _OtherConfig) -> int:
    print(f"id={config.id}")
    return 3


def _subcommand(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["job.py", *arguments])
    try:
        return run_subcommand({"run": _print_steps, "show": _print_id}, "Examples of the job.")
    except SystemExit as ended:
        return int(str(ended.code))


def test_each_subcommand_has_its_own_settings_help_and_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("steps: 7\n")
    assert _subcommand(monkeypatch, "run", f"--config={tmp_path / 'config.yaml'}", "--rate", "0.1") == 0
    assert _subcommand(monkeypatch, "show", "--id", "run") == 3
    assert capsys.readouterr().out == "steps=7\nid=run\n"
    assert _subcommand(monkeypatch, "run", "--steps", "5", "--print_config") == 0
    assert "steps: 5" in capsys.readouterr().out
    assert _subcommand(monkeypatch, "show", "--help") == 0
    shown = capsys.readouterr().out
    assert "usage: job.py show" in shown
    assert "An id." in shown
    assert _subcommand(monkeypatch, "show", "--steps", "5") == 2


def test_a_job_without_a_subcommand_lists_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code in (([], 2), (["--help"], 0)):
        assert _subcommand(monkeypatch, *arguments) == code
        written = capsys.readouterr()
        shown, other = (written.err, written.out) if code else (written.out, written.err)
        assert not other
        for text in ("Examples of the job.", "run", "What the test runs.", "show", "What the other subcommand does."):
            assert text in shown
    for arguments in (["--steps", "5"], ["begin"], ["--steps", "5", "run"]):
        assert _subcommand(monkeypatch, *arguments) == 2
        assert "is not a subcommand; begin with one of: run, show" in capsys.readouterr().err


def test_busy_error_of_a_ray_task_keeps_its_code(capsys) -> None:
    class _TaskError(Exception):
        cause = BusyError("another works here", fix="wait")

    def body(config: _Config) -> int:
        raise _TaskError

    assert run_job(_Config, body, None) == 4
    assert "another works here" in capsys.readouterr().err
