"""Hostile settings of every job give a parsed configuration or a LookalikeError, never a traceback."""

import dataclasses
import json
import os
import random
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from lookalike.config import canonical_json, fingerprint, parse, to_dict
from lookalike.errors import LookalikeError
from lookalike.training.config import TrainConfig
from pipelines.curate import CurateConfig
from pipelines.curate.diff import DiffConfig
from pipelines.curate.trace import TraceConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.finetune import FinetuneConfig
from pipelines.generate import GenerateConfig
from pipelines.ingest import IngestConfig
from pipelines.pretrain import PretrainConfig
from pipelines.promote import PromoteConfig
from pipelines.report import ReportConfig

JOBS = [
    *(CurateConfig, DiffConfig, TraceConfig, EvaluateConfig, FinetuneConfig, GenerateConfig, IngestConfig),
    *(PretrainConfig, PromoteConfig, ReportConfig, TrainConfig),
]
TRIES = int(os.environ.get("LOOKALIKE_FUZZ_TRIES", "25"))  # for each job; 180 make 2,000 in all, in four minutes
_TEXT = [
    *("", " ", "a", "-", "--", "-x", "=", "a=b", "[", "[a", "[]", "{}", "{", "}", "{a: b}", "null", "true", "1", "nan"),
    *(
        "🐈",
        'say "hi"',
        "it's",
        "a\nb",
        "\t",
        "a\0b",
        "\x1b[31m",
        "\udcff",
        "\ud83d",
        "ü" * 300,
        "a" * 5000,
        "#",
        "%41",
    ),
    *(
        "${HOME}",
        "{{x}}",
        "*",
        "&a",
        "!!python/object:os.system",
        "@file",
        "file://host/x",
        "s3://",
        "C:\\x",
        "~nobody/x",
    ),
    *(
        "(",
        "(a+)+$",
        "[z-a]",
        "\\",
        "../..",
        "/dev/null/x",
        "models:/",
        "models:/x@",
        "http://[",
        "1e400",
        "0x10",
        "1_000",
    ),
    *(
        "2026-01-01",
        "yes",
        "~",
        ".nan",
        "-.inf",
        "? a",
        "a: b: c",
        "- a",
        "'",
        "|",
        ">",
        "%YAML 9",
        "---",
        "\ufeff",
        "\u2028",
    ),
]
_NUMBERS = [
    *(0, 1, -1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**5000, 0.5, -0.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), float("-inf"), True, False),
]
_OTHER = [
    None,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    {"class_path": "os.system"},
    {"init_args": {}},
    [1, "a"],
    {1: 2},
    {None: None},
]


def _value(rng: random.Random, hint: Any) -> Any:
    """A value of the right type, hostile or not, or of another one."""
    if rng.random() < 0.15:
        return rng.choice([*_TEXT, *_NUMBERS, *_OTHER])
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _value(rng, rng.choice(arguments))
    if origin is Literal:
        return rng.choice([*arguments, "no such"])
    if origin in (list, tuple):
        return [_value(rng, arguments[0]) for _ in range(rng.randrange(4))]
    if origin is dict:
        return {rng.choice(["steps", "stages", "seed", "max_samples", "x", ""]): rng.choice([*_NUMBERS, *_TEXT])}
    if dataclasses.is_dataclass(hint):
        return _settings(rng, hint, share=0.3)
    if hint is int:
        return rng.choice([number for number in _NUMBERS if type(number) is int])
    return rng.choice(_NUMBERS if hint is float else [True, False] if hint is bool else _TEXT)


def _settings(rng: random.Random, config_class: Any, share: float) -> dict[Any, Any]:
    hints = get_type_hints(config_class)
    settings: dict[Any, Any] = {}
    for item in dataclasses.fields(config_class):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if rng.random() < (0.9 if required else share):
            valid = required and hints[item.name] is str and rng.random() < 0.6
            settings[item.name] = f"/data/{item.name}" if valid else _value(rng, hints[item.name])
    if rng.random() < 0.1:
        settings[
            rng.choice(["nope", "", 1, None, "config", "help", "print_config", "a.b", "--x", "self", "__class__"])
        ] = 1
    return settings


def _flags(rng: random.Random, settings: dict[Any, Any], prefix: str = "") -> list[str]:
    flags: list[str] = []
    for name, value in settings.items():
        if isinstance(value, dict) and value and rng.random() < 0.7:
            flags += _flags(rng, value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else _short(value)
            flags += [f"--{prefix}{name}={text}"] if rng.random() < 0.5 else [f"--{prefix}{name}", text]
    return flags


def _short(value: Any) -> str:
    try:
        return json.dumps(value)
    except (ValueError, TypeError):
        return "9" * 5000


def _document(rng: random.Random, settings: dict[Any, Any]) -> bytes:
    try:
        data = yaml.safe_dump(settings, allow_unicode=True).encode(errors="surrogateescape")
    except (ValueError, UnicodeError, yaml.YAMLError):
        data = b"a: " + b"9" * 5000
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(60)
    if kind == 1:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 2:
        return rng.choice(
            [
                b"",
                b"[]",
                b"1",
                b"a",
                b"\xff\xfe" + "a: 1".encode("utf-16-le"),
                b"&a [*a]",
                b"[" * 3000,
                b"a: &x {b: *x}",
                b"\0",
            ]
        )
    return data


def _try(config_class: Any, argv: list[str]) -> str:
    """What happens: ``parsed``, ``refused`` (exit code 2) or ``error``; anything else goes through."""
    try:
        config = parse(config_class, argv)
    except SystemExit as end:
        return {0: "shown", 2: "refused"}[int(str(end.code))]  # shown: --help, --print_config
    except LookalikeError as error:
        str(error).encode()
        return "error"
    fingerprint(to_dict(config))
    canonical_json(to_dict(config)).encode()
    return "parsed"


@pytest.mark.parametrize("config_class", JOBS, ids=lambda config_class: config_class.__name__)
def test_hostile_settings_end_without_a_traceback(config_class: Any, tmp_path: Path, capsys: Any) -> None:
    found: dict[str, int] = {}
    for seed in range(TRIES):
        rng = random.Random(f"{config_class.__name__}-{seed}")
        settings = _settings(rng, config_class, share=rng.choice([0.0, 0.05, 0.2]))
        if rng.random() < 0.5:
            file = tmp_path / "config.yaml"
            file.write_bytes(_document(rng, settings))
            argv = [f"--config={file}"]
        else:
            argv = _flags(rng, settings)
        try:
            outcome = _try(config_class, argv)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {argv!r:.600}") from error
        found[outcome] = found.get(outcome, 0) + 1
        capsys.readouterr()
    if config_class not in (DiffConfig, GenerateConfig, TraceConfig):  # whose fields depend on each other
        assert found["parsed"] > 0
    assert found.get("refused", 0) + found.get("error", 0) > 0
