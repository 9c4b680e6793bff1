"""The dry run of a finetune says what each photo is good for, what is missing, and what it takes."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter

import lookalike
from jobs.finetune import main_check
from lookalike.errors import ConfigError, InputError
from lookalike.storage import open_store
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.too_small import TooSmall
from pipelines.finetune import CheckConfig, check
from pipelines.finetune.config import default_evaluation
from pipelines.finetune.examine import SeveralSubjects
from tests.drawn import draw, jpeg, photo, write_raw
from tests.unit.pipelines.test_intake import private_photo

CALIBRATION = Path(lookalike.__file__).parent / "assets" / "calibration"
PRICE = {"seconds_per_step": 0.5, "seconds_per_image_step": 0.1, "seconds_per_loss": 0.01, "seconds_before": 10.0}


def _write(folder: Path, views: list[int], subject: int = 0, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, view in enumerate(views, start=first):
        (folder / f"{number:02d}.jpg").write_bytes(photo(subject, view).jpeg)
    return folder


def test_each_photo_has_its_use_or_the_reason_of_curation(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos", [0, 1, 2, 3, 4])
    (folder / "again.jpg").write_bytes(photo(0, 0).jpeg)
    (folder / "smaller.jpg").write_bytes(jpeg(draw(0, 1, 150), 60))
    blurred = Image.fromarray(draw(0, 5)).filter(ImageFilter.GaussianBlur(9))
    blurred.save(folder / "soft.jpg")
    Image.fromarray(draw(0, 6)[:20, :20]).save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes(photo(0, 7).jpeg[:500])
    (folder / "side.jpg").write_bytes(private_photo("JPEG", 8, 6))
    (folder / "notes.txt").write_text("not a caption")
    found = check(CheckConfig(photos=str(folder)))
    rows = {row["name"]: row for row in found["photos"]}
    refused = {name: row["reason"].partition(":")[0] for name, row in rows.items() if row["use"] == "refused"}
    assert refused.pop("00.jpg", None) or refused.pop("again.jpg", None)
    assert {"soft.jpg": "blurry", "tiny.png": "too_small", "broken.jpg": "undecodable"}.items() <= refused.items()
    assert [row["use"] for row in rows.values()].count("held out") == 2
    assert (rows["side.jpg"]["width"], rows["side.jpg"]["height"]) == (120, 160)
    assert found["usable"] + len([row for row in rows.values() if row["use"] == "refused"]) == len(rows) == 11
    assert found["skipped"] == {"notes.txt": "neither a photo nor the sidecar of one"}
    assert (found["missing"], found["estimate"]) == (0, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_too_few_usable_photos_are_counted_and_the_job_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _write(tmp_path / "photos", [0, 0, 0, 0])
    assert main_check(CheckConfig(photos=str(folder))) == 2
    shown = capsys.readouterr().out
    assert "0 of 4 photos can be used; 2 more are needed" in shown
    assert shown.count("single_photo") == 1
    assert shown.count("exact_duplicate") == 3
    assert main_check(CheckConfig(photos=str(folder), json=True)) == 2
    assert json.loads(capsys.readouterr().out)["missing"] == 2


@pytest.mark.parametrize(("number", "message"), [(3, "photos is 3.*add 1"), (40, "photos is 40.*remove 20")])
def test_three_and_forty_photos_are_refused(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(CheckConfig(photos=str(_write(tmp_path / "photos", list(range(number))))))


def test_photos_of_two_subjects_are_refused_by_name_unless_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("chair_2000006", "snowman_2000004"):
        for view in ("first", "second"):
            (folder / f"{name}-{view}.webp").write_bytes((CALIBRATION / f"{name}-{view}.webp").read_bytes())
    with pytest.raises(InputError, match=r"two subjects: chair_\S+, chair_\S+ and snowman_\S+, snowman") as refused:
        check(CheckConfig(photos=str(folder)))
    assert "--allow_several_subjects" in refused.value.fix
    found = check(CheckConfig(photos=str(folder), allow_several_subjects=True))
    assert [len(group) for group in found["groups"]] == [2, 2]


def test_one_stray_photo_or_a_loose_set_is_one_subject() -> None:
    import numpy as np

    loose = np.full((6, 6), 0.4) + 0.6 * np.eye(6)
    assert set(SeveralSubjects().split(loose)) == {1}
    stray = np.full((5, 5), 0.8)
    stray[0, 1:] = stray[1:, 0] = 0.1
    assert set(SeveralSubjects().split(stray)) == {1}
    two = np.full((6, 6), 0.2)
    two[:3, :3] = two[3:, 3:] = 0.7
    assert SeveralSubjects().split(two).tolist() in ([1, 1, 1, 2, 2, 2], [2, 2, 2, 1, 1, 1])


def test_raw_shards_are_examined_too(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", [photo(0, view) for view in range(5)])
    found = check(CheckConfig(photos=str(raw)))
    assert [row["name"] for row in found["photos"]] == [f"thing00-{view}" for view in range(5)]
    assert found["usable"] == 5


def test_filters_are_those_of_the_finetune(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos", [0, 1, 2, 3, 4])
    found = check(CheckConfig(photos=str(folder), filters=FiltersConfig(too_small=TooSmall(500))))
    assert {row["reason"] for row in found["photos"]} == {"too_small"}
    assert (found["usable"], found["missing"], found["triplets"]) == (0, 3, 0)


def test_time_and_price_follow_from_the_settings(tmp_path: Path) -> None:
    folder = _write(tmp_path / "photos", [0, 1, 2, 3])

    def estimate(price: dict[str, Any], **settings: Any) -> dict[str, Any]:
        return dict(check(CheckConfig(**{"photos": str(folder), "price": _price(price), **settings}))["estimate"])

    usual = estimate({**PRICE, "per_hour": 3.6, "currency": "EUR"})
    steps, evaluation = 40, default_evaluation()
    images = 2 * evaluation["prompts_per_subject"] * evaluation["images_per_prompt"]
    seconds = 10 + 0.5 * steps + images * evaluation["steps"] * 0.1 + 4 * evaluation["max_samples"] * 0.01
    assert usual["seconds"] == pytest.approx(seconds, abs=0.2)
    assert usual["price"] == pytest.approx(seconds / 1000, abs=1e-3)
    assert estimate(PRICE, budget="best")["training"] == 2 * usual["training"]
    assert estimate(PRICE, budget="fast")["evaluation"] < usual["evaluation"] / 2
    run = open_store(str(tmp_path / "run"))
    run.write("metrics.jsonl", b'{"step": 0, "step_seconds": 2.0}\n{"step": 1, "validation": {}}\n')
    assert estimate({**PRICE, "measured_run": run.uri})["training"] == 2.0 * steps
    table = tmp_path / "prices.yaml"
    table.write_text("machines: {a: {per_hour: 1}, b: {per_hour: 2.0, seconds_per_step: 1.0}}")
    with pytest.raises(ConfigError, match=r"choose --price\.machine from a, b"):
        estimate({"table": str(table)})
    with pytest.raises(ConfigError, match="seconds_per_image_step"):
        estimate({"table": str(table), "machine": "b"})
    shipped = Path(__file__).resolve().parents[3] / "jobs" / "configs" / "prices.yaml"
    assert estimate({"table": str(shipped)})["price"] > 0


def _price(values: dict[str, Any]) -> Any:
    from pipelines.finetune.config import PriceConfig

    return PriceConfig(**values)


def test_budget_sets_steps_and_evaluation_and_conflicts_with_given_ones() -> None:
    usual, fast = CheckConfig(photos="p"), CheckConfig(photos="p", budget="fast")
    assert [phase.steps for phase in fast.phases(2e-4)] == [20]
    assert [(phase.steps, phase.learning_rate) for phase in usual.phases(2e-4)] == [(40, 2e-4)]
    assert fast.evaluation["max_samples"] == default_evaluation()["max_samples"] // 4
    assert CheckConfig(photos="p", budget="standard") == usual
    assert CheckConfig(photos="p", budget="fast", evaluation=fast.evaluation) == fast
    given = usual.phases(1e-3)
    assert CheckConfig(photos="p", stages=given).phases(2e-4) == given
    with pytest.raises(ConfigError, match="budget sets stages"):
        CheckConfig(photos="p", budget="fast", stages=given)
    with pytest.raises(ConfigError, match="budget sets stages"):
        CheckConfig(photos="p", budget="fast", evaluation={"max_samples": 8})
