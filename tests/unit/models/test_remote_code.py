"""A model that brings Python code is refused at once: nothing is asked on standard input, and nothing is imported."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lookalike.annotators.captioner import Captioner
from lookalike.annotators.embedder import load_embedder, revision_of
from lookalike.annotators.scorers import ClassArea, ClassProbability
from lookalike.bundles.load import build_model
from lookalike.bundles.manifest import read_preset, write_manifest
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.errors import LookalikeError
from lookalike.evaluation.metrics.clip import Clip

_CLASSES = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor", "AutoTokenizer")
_MODELS = ("AutoModelForImageClassification", "AutoModelForImageTextToText")


@pytest.fixture(params=["evil", "vit"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with code of its own: of an unknown type, or of one that transformers has too."""
    marker = tmp_path / "IMPORTED"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil:\n    pass\n")
    auto_map = {"auto_map": dict.fromkeys((*_CLASSES, *_MODELS), "evil.Evil")}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": request.param} | auto_map))
    processor = {"image_processor_type": "Evil", "processor_class": "Evil"} | auto_map
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(processor))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    return tmp_path


@pytest.mark.parametrize(
    "load",
    [
        lambda name: load_embedder(name),
        lambda name: Captioner(name).load("cpu"),
        lambda name: ClassProbability(name).load("cpu"),
        lambda name: ClassArea(name).load("cpu"),
        lambda name: Clip(name),
        lambda name: revision_of(name),
    ],
    ids=["embedder", "captioner", "classifier", "segmentation", "clip", "revision"],
)
def test_code_of_a_model_is_never_run(
    load: Callable[[str], object], folder: Path, request: pytest.FixtureRequest
) -> None:
    if "revision" in request.node.name and "vit" in request.node.name:
        load(str(folder))  # of a known type, its configuration needs no code
    else:
        with pytest.raises(LookalikeError) as refused:
            load(str(folder))
        if "clip" not in request.node.name:
            assert "needs code from its repository, which is never run" in str(refused.value)
    assert not (folder / "IMPORTED").exists()


def test_code_in_a_bundle_is_never_run(
    folder: Path, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = tmp_path_factory.mktemp("bundle") / "b"
    shutil.copytree(bundle_dir, bundle)
    shutil.copy(folder / "config.json", bundle / "mllm" / "config.json")
    shutil.copy(folder / "evil.py", bundle / "mllm" / "evil.py")
    with suppress(LookalikeError, KeyError):  # a ViT is not a joint encoder
        build_model(bundle)
    assert not (folder / "IMPORTED").exists()


@pytest.mark.parametrize("change", [{"scheduler": ["evil", "Evil"]}, {"_class_name": ["evil", "Evil"]}], ids=str)
def test_a_bundle_names_no_module_to_import(
    change: dict[str, Any], folder: Path, bundle_dir: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    bundle = tmp_path_factory.mktemp("bundle") / "b"
    shutil.copytree(bundle_dir, bundle)
    index = json.loads((bundle / "model_index.json").read_text())
    (bundle / "model_index.json").write_text(json.dumps(index | change))
    write_manifest(bundle, read_preset(bundle))  # whoever forges one file forges the other too
    with pytest.raises(LookalikeError, match="names a class that no bundle has"):
        SubjectPipeline.from_pretrained(bundle)
    assert not (folder / "IMPORTED").exists()
