"""Keys are built in one module, stages are independent, and fingerprints do not depend on comments or docstrings."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pipelines.curate
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.too_small import TooSmall
from pipelines.curate.screen import screen_shard
from pipelines.curate.tables import read_table
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
        *("index", "cluster_subjects", "screen", "duplicates", "subject_links", "score", "plan", "layout"),
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
    index = [(info.key, work.dataset.read(info.key)) for info in (*work.rows, *work.vectors)]
    stricter = planned(raw, filters=replace(LOOSE, too_small=TooSmall(min_short_side_px=100)))
    assert [(info.key, work.dataset.read(info.key)) for info in (*stricter.rows, *stricter.vectors)] == index
    dropped = []
    for each in (work, stricter):
        tables = [read_table(each.dataset, each.workspace.reasons(unit)) for unit in each.inputs.units]
        dropped.append([reason for table in tables for reason in table["reason"].to_pylist() if reason])
        assert sum(len(each.read_screened(unit)) for unit in each.inputs.units) + len(dropped[-1]) == each.images
    assert dropped == [[], ["too_small"]]


def test_a_screened_shard_is_not_screened_again(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    work = planned(write_raw(tmp_path / "raw", world(2, 2)), filters=LOOSE)
    path = Path(work.config.dataset) / work.workspace.reasons(0)
    before = path.stat().st_mtime_ns
    screen_shard(work, 0)
    assert path.stat().st_mtime_ns == before
