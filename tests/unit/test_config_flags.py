from dataclasses import dataclass, field

import pytest

from lookalike.config import IDENTITY_IF_SET, NOT_IDENTITY, POSITIONAL, fields_marked, parse


@dataclass(frozen=True)
class _Config:
    """What the test parses."""

    prompt: list[str] = field(default_factory=list)
    """May be repeated."""
    steps: int = 3
    """Any other flag."""
    log_every: int = 1
    """A name of two words."""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--prompt", "a cup"], ["a cup"]),
        (["--prompt", "a cup, red: [1]", "--steps", "5", "--prompt=7"], ["a cup, red: [1]", "7"]),
        (["--prompt", '["a", "b"]', "--prompt", "c"], ["a", "b", "c"]),
        (["--prompt", "[a cup, b]"], ["a cup", "b"]),
        (["--prompt", "[not a list"], ["[not a list"]),
        ([], []),
    ],
)
def test_list_of_strings_is_a_repeatable_flag(argv: list[str], expected: list[str]) -> None:
    assert parse(_Config, argv).prompt == expected


def test_flags_win_over_the_file(tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("prompt: [from the file, second]\nsteps: 9\n")
    assert parse(_Config, ["--config", str(file), "--prompt", "from the flag"]) == _Config(["from the flag"], 9)
    assert parse(_Config, ["--config", str(file)]).prompt == ["from the file", "second"]


@pytest.mark.parametrize("document", ["nope: 1", "nope: {}", "nope: {deeper: {}}", "nope:"])
def test_unknown_key_of_the_file_is_refused_by_name(document: str, tmp_path, capsys) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(document)
    with pytest.raises(SystemExit) as refused:
        parse(_Config, ["--config", str(file)])
    assert refused.value.code == 2
    assert "nope" in capsys.readouterr().err


def test_flag_without_a_value_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(_Config, ["--prompt"])
    assert refused.value.code == 2
    assert "--prompt" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--log-every=7", "--log_every=7"])
def test_flags_accept_dashes(flag: str) -> None:
    assert parse(_Config, [flag, "--prompt", "--not-a-flag"]) == _Config(["--not-a-flag"], log_every=7)


@dataclass(frozen=True)
class _Switches:
    """What the test parses."""

    out: str = ""
    """Any other flag."""
    require_promoted: bool = False
    """A switch."""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--require-promoted"], True),
        (["--require_promoted", "--out", "x"], True),
        (["--require-promoted", "true", "--out=x"], True),
        (["--require-promoted", "false"], False),
        (["--require_promoted=false"], False),
        ([], False),
    ],
)
def test_boolean_flag_needs_no_value(argv: list[str], expected: bool) -> None:
    assert parse(_Switches, argv).require_promoted is expected


@dataclass(frozen=True)
class _Positional:
    """Settings that may be written without their flags."""

    kind: str = field(default="", metadata=POSITIONAL)
    """One value."""
    models: list[str] = field(default_factory=list, metadata={**NOT_IDENTITY, **POSITIONAL})
    """All that are left."""
    steps: int = 3
    """A flag."""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["x", "a", "b", "--steps", "5"], _Positional("x", ["a", "b"], 5)),
        (["x", "--models", "a", "--models", "b"], _Positional("x", ["a", "b"])),
        (["x", "a", "--models", "b"], _Positional("x", ["a", "b"])),
        (["--kind", "x"], _Positional("x")),
        (["x", "file:///a, b: [1]"], _Positional("x", ["file:///a, b: [1]"])),
        ([], _Positional()),
    ],
)
def test_positional_arguments_come_before_the_flags(argv: list[str], expected: _Positional) -> None:
    assert parse(_Positional, argv) == expected


def test_positional_argument_after_a_flag_or_of_a_job_without_any_is_refused(capsys) -> None:
    for config_class, argv in ((_Positional, ["x", "--steps", "5", "late"]), (_Config, ["left over"])):
        with pytest.raises(SystemExit) as refused:
            parse(config_class, argv)
        assert refused.value.code == 2
        assert argv[-1] in capsys.readouterr().err


def test_joined_marks_of_a_field_both_count() -> None:
    assert fields_marked(_Positional(), NOT_IDENTITY) == ("models",)
    assert fields_marked(_Positional(), POSITIONAL) == ("kind", "models")
    assert fields_marked(_Positional(), IDENTITY_IF_SET) == ()
