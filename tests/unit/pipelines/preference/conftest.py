"""Fixtures: two finished evaluations on one suite, and the page that is made of them."""

from pathlib import Path

import pytest

from pipelines.preference import MakeConfig, make
from pipelines.preference.pairs import Key, read_key
from tests.judged import write_dataset, write_evaluation


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="session")
def evaluations(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Evaluations of a good, a middling and a poor model."""
    folder = tmp_path_factory.mktemp("evaluations")
    return {
        name: str(write_evaluation(folder / name, suite, quality))
        for name, quality in (("a", 0.9), ("b", 0.6), ("c", 0.3))
    }


@pytest.fixture(scope="session")
def page(evaluations: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a page of all three models."""
    out = tmp_path_factory.mktemp("page") / "people"
    make(MakeConfig(**evaluations, out=str(out), max_pairs=30, checks=5, repeats=4))
    return out


@pytest.fixture(scope="session")
def key(page: Path) -> Key:
    return read_key(str(page))
