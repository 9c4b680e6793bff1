"""The job as its user starts it: a page, choices of two judges, and the results."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from pipelines.preference.pairs import read_key
from tests.judged import judge

RunJob = Callable[..., CompletedProcess[str]]


def test_make_and_read(run_job: RunJob, evaluations: dict[str, str], tmp_path: Path) -> None:
    models = [word for name in "ab" for word in (f"--{name}", evaluations[name])]
    asked = ["--criteria", "identity", "--criteria", "prompt", "--questions", '{identity: "Which is my thing?"}']
    made = run_job(
        "preference", "make", *models, *asked, "--max_pairs", "8", "--checks", "4", "--out", str(tmp_path / "people")
    )
    assert made.returncode == 0, made.stderr
    assert "8 pairs of a, b, 8 repeated, 4 attention checks, 0 cases left out" in made.stdout
    assert "Which is my thing?" in (tmp_path / "people" / "preference.html").read_text()
    key = read_key(str(tmp_path / "people"))
    (tmp_path / "choices").mkdir()
    for name in ("anna", "ben"):
        export = judge(key, name, {"a": 2.0, "b": -2.0})
        assert len(export.choices) == 2 * len(key.pairs)
        (tmp_path / "choices" / f"{name}.json").write_text(json.dumps(dataclasses.asdict(export)))
    (tmp_path / "choices" / "broken.json").write_text("{")
    asked = ["--pairs", str(tmp_path / "people"), "--choices", str(tmp_path / "choices")]
    done = run_job("preference", "read", *asked, "--out", str(tmp_path / "result"))
    assert done.returncode == 0, done.stderr
    assert "broken.json is left out: not valid JSON" in done.stderr
    assert "## identity" in done.stdout
    assert "## prompt" in done.stdout
    assert (tmp_path / "result" / "preference.md").read_text().strip() in done.stdout
    refused = run_job("preference", "read", *asked[:2], "--choices", str(tmp_path / "none.json"), "--out", "x")
    assert refused.returncode == 2
    assert "the file of choices does not exist" in refused.stderr
