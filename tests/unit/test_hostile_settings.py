"""No value of a setting makes the parser import a module or read a file, and no configuration's text is shown."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from lookalike.config import parse, read_config_file
from lookalike.errors import ConfigError
from lookalike.models.presets import Preset, load_preset, preset_from_dict
from pipelines.curate import CurateConfig
from pipelines.generate import GenerateConfig

_seen: list[str] = []
_watched: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "import") and _watched and any(name in str(arguments[0]) for name in _watched):
        _seen.append(f"{event} {arguments[0]}")


sys.addaudithook(_watch)


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Values that name a module or a file; neither may be imported or read."""
    (tmp_path / "canary_module.py").write_text(f"open({str(tmp_path / 'IMPORTED')!r}, 'w')\nclass Evil: ...\n")
    (tmp_path / "canary_file.yaml").write_text("{}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _seen.clear()
    _watched[:] = ["canary_module", "canary_file"]
    spec = {"class_path": "canary_module.Evil"}
    yield [str(tmp_path / "canary_file.yaml"), "canary_module.Evil", spec, spec | {"init_args": {}}, [spec]]
    _watched.clear()
    assert not (tmp_path / "IMPORTED").exists()


def groups(config_class: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(config_class).items():
        for group in filter(dataclasses.is_dataclass, (hint, *get_args(hint))):
            yield prefix + name
            yield from groups(group, f"{prefix}{name}.")


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


@pytest.mark.parametrize("name", ["actors", "labels", "labels.found", "captioner"])
def test_text_in_place_of_a_group_imports_and_reads_nothing(name: str, canaries: list[Any], tmp_path: Path) -> None:
    config_class = GenerateConfig if name == "actors" else CurateConfig
    assert name in set(groups(config_class))
    file = tmp_path / "config.yaml"
    for value in canaries:
        file.write_text(json.dumps(nested(name, value) if isinstance(value, str) else {name: value}))
        text = value if isinstance(value, str) else json.dumps(value)
        for flags in ([f"--config={file}"], [f"--{name}", text]):
            with pytest.raises((ConfigError, SystemExit)):
                parse(config_class, flags)
    for flag in (f"--{name}.class_path=canary_module.Evil", f"--{name}={canaries[0]}"):
        with pytest.raises((ConfigError, SystemExit)):
            parse(config_class, [flag])
    assert _seen == []


def test_groups_cannot_be_abbreviated(canaries: list[Any]) -> None:
    with pytest.raises(SystemExit):
        parse(CurateConfig, ["--filter", canaries[0]])
    assert _seen == []


def test_preset_of_a_bundle_imports_and_reads_nothing(canaries: list[Any]) -> None:
    plain = json.loads(json.dumps(dataclasses.asdict(load_preset("mini"))))
    for name in ("mllm", "mllm.lora", "vae", "aggregator", "references", "lora"):
        for value in canaries:
            values = json.loads(json.dumps(plain))
            *outer, last = name.split(".")
            part = values[outer[0]] if outer else values
            part[last] = value
            with pytest.raises(ConfigError):
                preset_from_dict(values)
    assert _seen == []
    assert isinstance(preset_from_dict(plain), Preset)


def test_groups_that_are_mappings_are_read(tmp_path: Path) -> None:
    places = ["--raw=/r", "--dataset=/d"]
    assert parse(CurateConfig, [*places, '--labels={"found": {"neighbours": 3}}']).labels.found.neighbours == 3  # type: ignore[union-attr]
    assert parse(CurateConfig, [*places, "--labels.found=null"]).labels.found is None
    file = tmp_path / "config.yaml"
    file.write_text("filters: {not_safe: {max_score: 0.8}}\n")
    assert parse(CurateConfig, [*places, "--config", str(file)]).filters.not_safe is not None


@pytest.mark.parametrize("document", ["root:*:20228:0:99999:7::", "a secret: 1", "- secret", "raw: [secret", "secret"])
def test_text_of_an_invalid_configuration_file_is_not_shown(document: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "shadow"
    file.write_text(f"{document}\n")
    with pytest.raises(ConfigError) as refused:
        parse(CurateConfig, ["--config", str(file)])
    shown = str(refused.value) + capsys.readouterr().err
    assert "20228" not in shown
    assert "secret" not in shown


def test_endless_configuration_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than"):
        read_config_file(Path("/dev/zero"))


def test_configuration_cannot_include_another_file(canaries: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"config": canaries[0]}))
    with pytest.raises(ConfigError, match="names another configuration file"):
        parse(GenerateConfig, [f"--config={file}"])
    assert _seen == []


def test_environment_variables_cannot_name_a_configuration_file(
    canaries: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path(sys.argv[0]).stem.upper().replace("-", "_")
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name in ("CONFIG", "ACTORS"):
        for prefix in (program, "PYTEST", "__MAIN__"):
            monkeypatch.setenv(f"{prefix}_{name}", canaries[0])
    required = ["--model=m", "--out=o", "--prompt=p", "--reference=r"]
    assert parse(GenerateConfig, required).model == "m"
    assert _seen == []
