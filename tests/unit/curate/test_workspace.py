"""Keys are built in one module, stages are independent, and fingerprints do not depend on comments or docstrings."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines.curate
from pipelines.curate.captions import CaptionsConfig
from pipelines.curate.config import ShardsConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.near_duplicate import NearDuplicate
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.too_small import TooSmall
from pipelines.curate.subject_rows import read_subjects
from pipelines.curate.work import StageWork
from tests.drawn import Photo, draw, jpeg, world, write_raw

PACKAGE = Path(pipelines.curate.__file__).parent
REPO = PACKAGE.parents[1]
LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
FINGERPRINT = """
from pipelines.curate import CurateConfig
from pipelines.curate.filters import FiltersConfig, NoPair
from pipelines.curate.inputs import Inputs
filters = FiltersConfig(skip=["near_duplicate", "off_subject"], no_pair=NoPair(min_similarity=0))
inputs = Inputs.of(CurateConfig(raw="raw", dataset="dataset", embedder="none", filters=filters), [])
print(pipelines.curate.__file__, inputs.fingerprint, inputs.code)
"""


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Strings that are statements: docstrings of modules, classes and functions, and of attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def test_only_the_workspace_builds_keys() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name == "workspace.py":
            continue
        tree = ast.parse(path.read_text())
        texts = {id(node) for node in docstrings(tree)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
                key = re.search(r"^work/|^work$|^shards/|^\S*\.(parquet|txt)$|claim\.json", node.value)
                assert not key, f"{path.name} line {node.lineno} builds a key: {node.value!r}"
            if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
                assert not re.search(r"0[56]d", ast.unparse(node.format_spec)), f"{path.name} line {node.lineno}"


def test_stages_import_no_other_stage() -> None:
    stages = {
        *("index", "cluster_subjects", "gather", "duplicates", "subject_links", "score", "plan", "layout"),
        *("materialise", "finish"),
    }
    for stage in stages:
        tree = ast.parse((PACKAGE / f"{stage}.py").read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {f"pipelines.curate.{other}" for other in stages}, stage


def test_comments_and_docstrings_change_no_fingerprint(tmp_path: Path) -> None:
    for source in ("pipelines", "platform/lookalike"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.png", "*.jpg")
        shutil.copytree(REPO / source, tmp_path / "copy" / source, ignore=ignored)
    edited = 0
    for path in (tmp_path / "copy").rglob("*.py"):
        lines = path.read_text().splitlines(keepends=True)
        for node in docstrings(ast.parse("".join(lines))):
            line = node.lineno - 1
            lines[line] = lines[line].replace('"""', '"""Reworded: ', 1)
            edited += 1
        path.write_text("".join(lines) + "\n# One more comment.\n")
    assert edited > 1000
    before, after = (
        subprocess.run(
            [sys.executable, "-c", "import pipelines.curate" + FINGERPRINT],
            env={"PATH": "", "PYTHONPATH": f"{root / 'platform'}:{root}"},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for root in (REPO, tmp_path / "copy")
    )
    assert after[0].startswith(str(tmp_path / "copy"))
    assert before[1:] == after[1:]


def test_a_changed_threshold_screens_again_and_indexes_nothing_again(
    planned: Callable[..., StageWork], tmp_path: Path
) -> None:
    photos = [*world(3, 3), Photo("small", jpeg(draw(0, 9, 80)), "thing00")]
    raw = write_raw(tmp_path / "raw", photos, per_shard=5)
    work = planned(raw, filters=LOOSE)
    index = [(key, work.dataset.read(key)) for key in tables_of(work)]
    stricter = planned(raw, filters=replace(LOOSE, too_small=TooSmall(min_short_side_px=100)))
    assert [(key, work.dataset.read(key)) for key in tables_of(stricter)] == index
    dropped = []
    for each in (work, stricter):
        read = [read_subjects(each, partition) for partition in range(each.partitions)]
        dropped.append([reason for part in read for reason in part.reasons if reason])
        assert sum(len(part.rows) for part in read) == each.images
    assert dropped == [[], ["too_small"]]


def tables_of(work: StageWork) -> list[str]:
    return [info.key for shard in work.shards for info in (shard.rows, shard.vectors)]


def written(dataset: Path) -> dict[str, int]:
    return {str(path.relative_to(dataset)): path.stat().st_mtime_ns for path in dataset.rglob("*") if path.is_file()}


def test_units_that_are_done_are_not_done_again(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(3, 3), per_shard=4)
    planned(raw, filters=LOOSE)
    before = written(tmp_path / "dataset")
    planned(raw, filters=LOOSE)
    assert written(tmp_path / "dataset") == before


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        ({"shards": ShardsConfig(jpeg_quality=50)}, set()),
        ({"captions": CaptionsConfig(max_characters=9)}, {"plan"}),
        ({"filters": replace(LOOSE, no_pair=NoPair(min_similarity=0.1))}, {"plan"}),
        ({"filters": replace(LOOSE, near_duplicate=NearDuplicate(max_hash_distance=3))}, {"plan", "links"}),
        (
            {"filters": replace(LOOSE, too_small=TooSmall(min_short_side_px=100))},
            {"gather", "duplicates", "links", "plan"},
        ),
    ],
)
def test_a_setting_redoes_only_the_stages_that_depend_on_it(
    planned: Callable[..., StageWork], tmp_path: Path, settings: dict[str, Any], again: set[str]
) -> None:
    raw = write_raw(tmp_path / "raw", world(3, 3), per_shard=4)
    planned(raw, filters=LOOSE)
    before = written(tmp_path / "dataset")
    planned(raw, **{"filters": LOOSE, **settings})
    after = written(tmp_path / "dataset")
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[1] for path in after.keys() - before.keys()} == again
