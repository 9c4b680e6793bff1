"""Pages of evaluations on a suite in a folder, with several images of a prompt and prompts for two subjects."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.data.images import encode_png
from lookalike.errors import InputError
from lookalike.evaluation.measurements import MEASUREMENTS, Measurement, to_parquet
from lookalike.evaluation.measurements import SCHEMA as MEASURED
from lookalike.evaluation.scores import SCORES, Scores, Source
from lookalike.storage import open_store
from pipelines.evaluate import EvaluateConfig
from pipelines.evaluate.suite_source import find_suite
from pipelines.preference import MakeConfig, make
from tests.drawn import draw, jpeg

LIST = """
classes: {rex: dog, tom: cat}
prompts:
- {prompt: a dog on grass, references: [rex/0.jpg], id: dog}
- {prompt: a cat on grass, references: [tom/0.jpg], id: cat}
- {prompt: a cat beside a dog, references: [tom/1.jpg, rex/1.jpg], id: both}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    for number, name in enumerate(("rex", "tom")):
        (folder / name).mkdir(parents=True)
        for view in range(3):
            (folder / name / f"{view}.jpg").write_bytes(jpeg(draw(number, view)))
    (folder / "suite.yaml").write_text(LIST)
    return folder


def _evaluate(out: Path, suite: Path, shade: int) -> str:
    import hashlib

    store, found = open_store(str(out)), find_suite(EvaluateConfig(bundle="b", suite=str(suite), out=str(out)))
    assert found.contents is not None
    rows = []
    for sample in found.contents.samples:
        for number in range(2):
            case = f"{sample.sample_id}#{number}"
            rows.append(Measurement(case, sample.subject, "identity", shade / 255 + number / 100))
            store.write(f"images/preset/{case}.png", encode_png(np.full((64, 64, 3), shade + number, np.uint8)))
    config = {"stages": ["preset"], "split": "validation", "seed": 0, "suite": str(suite), "images_per_prompt": 2}
    source = Source(found.source.uri, found.source.sha256)
    scores = Scores(Source("file:///bundle", "0" * 64), source, "right", {}, config=config)
    table = pa.Table.from_pylist([{"unit": 0, **vars(row)} for row in rows], schema=MEASURED)
    data = to_parquet(table, scores.evaluation())
    store.write(MEASUREMENTS, data)
    values = {**vars(scores), "measurements_sha256": hashlib.sha256(data).hexdigest()}
    store.write(SCORES, Scores(**values).to_json())
    return str(out)


def test_page_of_a_suite_in_a_folder(suite: Path, tmp_path: Path) -> None:
    models = {name: _evaluate(tmp_path / name, suite, shade) for name, shade in (("a", 90), ("b", 200))}
    made = make(MakeConfig(**models, out=str(tmp_path / "people"), repeats=0))
    assert made["left_out"] == []
    kinds = Counter((pair["kind"], pair["subject"]) for pair in made["pairs"])
    assert len({subject for kind, subject in kinds if kind == "models"}) == 3
    assert sum(count for (kind, _), count in kinds.items() if kind == "models") == 6
    assert {subject for kind, subject in kinds if kind == "check"} == {"rex", "tom"}  # a check shows one subject


def test_changed_suite_is_an_error(suite: Path, tmp_path: Path) -> None:
    models = {name: _evaluate(tmp_path / name, suite, shade) for name, shade in (("a", 90), ("b", 200))}
    (suite / "suite.yaml").write_text(LIST.replace("on grass", "in snow"))
    with pytest.raises(InputError, match="changed since"):
        make(MakeConfig(**models, out=str(tmp_path / "people")))
