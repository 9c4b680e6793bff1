"""What changes state of the whole process runs in one thread at a time: models are built, configurations are read."""

import ast
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lookalike.bundles.load import load_model
from lookalike.bundles.manifest import read_preset
from lookalike.models.presets import LoraConfig
from lookalike.models.stacked_lora import new_adapter
from lookalike.models.vae import load_vae

ROOT = Path(__file__).parents[2]
OURS = {"SubjectModel", "SubjectPipeline"}
"""Classes of ours whose methods of these names are marked themselves."""


def _changes_the_process(node: ast.AST) -> bool:
    """A call that builds a model or a tokenizer by a library, or replaces state of a module."""
    match node:
        case ast.Call(func=ast.Attribute(attr="from_pretrained" | "from_config", value=ast.Name(id=name))):
            return name not in OURS
        case ast.Call(func=ast.Attribute(attr="from_pretrained" | "from_config")):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="device"), args=[ast.Constant("meta")]):
            return True
        case ast.Call(func=ast.Name(id="no_init_weights" | "init_empty_weights" | "local_torch_dtype")):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="cudnn"), attr="flags")):
            return True
        case ast.Call(func=ast.Attribute(attr="catch_warnings" | "redirect_stdout" | "redirect_stderr" | "fork_rng")):
            return True
        case ast.Call(func=ast.Attribute(attr="add_adapter") | ast.Name(id="inject_adapter_in_model")):
            return True
        case ast.Call(func=ast.Attribute(attr="parse_args" | "parse_object" | "parse_string" | "add_class_arguments")):
            return True
    return False


def _is_marked(node: ast.AST) -> bool:
    """Whether a function or a ``with`` keeps other threads out."""
    calls: list[ast.expr] = []
    if isinstance(node, ast.FunctionDef):
        calls = node.decorator_list
    elif isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items]
    return any(ast.unparse(call) == "alone_in_process()" for call in calls)


def _unmarked(node: ast.AST) -> list[int]:
    if _is_marked(node):
        return []
    lines = [node.lineno] if isinstance(node, ast.Call) and _changes_the_process(node) else []
    return lines + [line for child in ast.iter_child_nodes(node) for line in _unmarked(child)]


@pytest.mark.parametrize("folder", ["platform", "pipelines", "jobs"])
def test_each_such_call_keeps_other_threads_out(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / folder).rglob("*.py")
        for line in _unmarked(ast.parse(path.read_text()))
    }
    assert not found


def test_threads_load_models_and_make_adapters_beside_each_other(bundle_dir: Path) -> None:
    model = load_model(bundle_dir)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    lora = LoraConfig(rank=2)
    adapter = {name: value.detach().clone() for name, value in new_adapter(model, lora, 3).parameters.items()}

    def loaded() -> None:
        found = load_model(bundle_dir).state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())

    def vae() -> None:
        assert not any(parameter.is_meta for parameter in load_vae(bundle_dir).parameters())

    def lora_of_another() -> None:
        found: dict[str, Any] = dict(new_adapter(load_model(bundle_dir), lora, 3).parameters)
        assert all(torch.equal(found[name], value) for name, value in adapter.items())

    def preset() -> None:
        assert read_preset(bundle_dir) == read_preset(bundle_dir)

    tasks: list[Callable[[], None]] = [loaded, vae, lora_of_another, preset] * 4
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(task) for task in tasks]:
            done.result()
