"""The page of blind pairs: what is on it, what is not, and what stops it from being made."""

import dataclasses
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.evaluation.scores import Source
from pipelines.preference import MakeConfig, cases, make
from pipelines.preference.cases import sample_of
from pipelines.preference.pairs import Key, choose_pairs, read_key
from tests.judged import write_evaluation


def _data(folder: Path) -> dict[str, Any]:
    text = (folder / "preference.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_page_has_the_asked_pairs_checks_and_repeats(page: Path, key: Key) -> None:
    assert Counter(pair.kind for pair in key.pairs.values()) == {"models": 30, "repeat": 4, "check": 5}
    data = _data(page)
    assert {pair["id"] for pair in data["pairs"]} == set(key.pairs)
    for pair in data["pairs"]:
        assert pair["repeats"] == key.pairs[pair["id"]].repeats
        assert len(pair["references"]) == 2
        assert pair["prompt"].startswith(f"thing {key.pairs[pair['id']].case.removeprefix('thing')}")


def test_page_names_no_model_and_keeps_no_metadata(page: Path) -> None:
    text = (page / "preference.html").read_text()
    assert "secret" not in text
    assert not {"models", "first", "subject", "case", "values"} & set(_data(page)["pairs"][0])
    import base64

    assert all(b"secret" not in base64.b64decode(uri.partition(",")[2]) for uri in _data(page)["images"])


def test_order_of_the_two_images_says_nothing_about_the_model(key: Key) -> None:
    firsts = Counter(pair.first < pair.second for pair in key.pairs.values() if pair.kind == "models")
    assert min(firsts[True], firsts[False]) >= 8
    assert list(key.pairs) == sorted(key.pairs)  # by ids that are hashes


def test_page_loads_nothing_and_runs_its_own_script_alone(page: Path) -> None:
    text = (page / "preference.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;; img-src data:; style-src &#39;sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    assert text.count("<script") == text.count("</script>") == 2  # though each prompt has such a tag
    assert "<img src=x" not in text


def test_pairs_are_spread_evenly_over_subjects_and_models() -> None:
    subjects = {f"{s}-{c}": f"s{s}" for s in range(6) for c in range(9)}
    chosen = choose_pairs(subjects, "abc", 54, seed=0)
    assert set(Counter(subjects[case] for case, *_ in chosen).values()) == {9}
    assert set(Counter((one, other) for _, one, other in chosen).values()) == {18}
    assert len({case for case, *_ in chosen}) == 54
    by_both = Counter((subjects[case], one, other) for case, one, other in chosen)
    assert set(by_both.values()) == {3}
    everything = choose_pairs(subjects, "abc", 10_000, seed=0)
    assert len(set(everything)) == len(everything) == 6 * 9 * 3
    assert choose_pairs(dict(reversed(subjects.items())), "abc", 54, seed=0) == chosen


def test_same_inputs_give_the_same_bytes(evaluations: dict[str, str], page: Path, tmp_path: Path) -> None:
    make(MakeConfig(**evaluations, out=str(tmp_path), max_pairs=30, checks=5, repeats=4))
    assert (tmp_path / "preference.html").read_bytes() == (page / "preference.html").read_bytes()
    assert (tmp_path / "pairs.json").read_bytes() == (page / "pairs.json").read_bytes()


def test_moved_evaluations_give_the_same_page(evaluations: dict[str, str], page: Path, tmp_path: Path) -> None:
    moved = {name: shutil.copytree(uri, tmp_path / name) for name, uri in evaluations.items()}
    config = MakeConfig(**{name: str(path) for name, path in moved.items()}, out=str(page), max_pairs=30, checks=5)
    with pytest.raises(ConflictError):  # four repeats
        make(config)
    make(dataclasses.replace(config, repeats=4))
    make(dataclasses.replace(config, repeats=4, out=str(tmp_path / "again")))
    assert (tmp_path / "again" / "preference.html").read_bytes() == (page / "preference.html").read_bytes()


def test_key_has_the_metrics_of_both_images(key: Key) -> None:
    quality = {"a": 0.9, "b": 0.6, "c": 0.3}
    for pair in key.pairs.values():
        if pair.kind == "models":
            assert set(pair.values) == {"identity"}
            expected = (quality[pair.first], quality[pair.second])
            assert pair.values["identity"] == pytest.approx(expected, abs=0.05)


def test_another_page_in_the_same_place_is_refused(evaluations: dict[str, str], page: Path) -> None:
    with pytest.raises(ConflictError, match="max_pairs"):
        make(MakeConfig(**evaluations, out=str(page), max_pairs=20, checks=5, repeats=4))


def test_changed_page_is_an_error(evaluations: dict[str, str], tmp_path: Path) -> None:
    config = MakeConfig(**evaluations, out=str(tmp_path), max_pairs=4)
    made = make(config)
    assert make(config) == made
    (tmp_path / "preference.html").write_text("other")
    with pytest.raises(InputError, match="changed after it was made"):
        make(config)


def test_too_large_page_is_refused_before_it_is_written(evaluations: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than the 1 MiB that max_mib allows; lower --max_pairs"):
        make(MakeConfig(a=evaluations["c"], b=evaluations["b"], out=str(tmp_path), max_pairs=200, max_mib=1))
    assert not (tmp_path / "preference.html").exists()


def test_image_that_cannot_be_read_leaves_its_case_out(
    suite: Path, evaluations: dict[str, str], tmp_path: Path
) -> None:
    worse = write_evaluation(tmp_path / "worse", suite, 0.2)
    (worse / "images/1.0-0.5/thing1-1.png").write_bytes(b"\x89PNG broken")
    (worse / "images/1.0-0.5/thing2-0.png").unlink()
    made = make(MakeConfig(a=evaluations["a"], b=str(worse), out=str(tmp_path / "out")))
    assert {row["case"] for row in made["left_out"]} == {"thing1-1", "thing2-0"}
    assert all(row["reason"] for row in made["left_out"])
    assert {pair["case"] for pair in made["pairs"]}.isdisjoint({"thing1-1", "thing2-0"})


def test_case_of_one_evaluation_only_is_left_out(suite: Path, evaluations: dict[str, str], tmp_path: Path) -> None:
    fewer = write_evaluation(tmp_path / "fewer", suite, 0.2, views=2)
    made = make(MakeConfig(a=evaluations["a"], b=str(fewer), out=str(tmp_path / "out")))
    assert [row["case"] for row in made["left_out"]] == [f"thing{s}-2" for s in range(4)]
    assert {row["reason"] for row in made["left_out"]} == {"not in b"}


def test_one_subject_has_no_attention_checks(suite: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = (str(write_evaluation(tmp_path / f"{q}", suite, q, subjects=1)) for q in (0.9, 0.4))
    made = make(MakeConfig(a=one, b=other, out=str(tmp_path / "out")))
    assert Counter(pair["kind"] for pair in made["pairs"]) == {"models": 3, "repeat": 3}
    assert "0 attention checks of 8" in caplog.text


def test_cases_of_several_images_of_a_prompt_are_those_of_their_sample() -> None:
    assert [sample_of(case) for case in ("dog-1@3", "dog-1#3", "dog-1", "dog@x", "@2", "a@1@2")] == [
        *("dog-1", "dog-1", "dog-1", "dog@x", "@2", "a@1")
    ]


def test_metrics_of_two_judges_are_not_compared_with_people(
    suite: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = {
        name: str(write_evaluation(tmp_path / name, suite, quality, embedder=f"embedder {name}"))
        for name, quality in (("a", 0.9), ("b", 0.6))
    }
    made = make(MakeConfig(**folders, out=str(tmp_path / "people"), max_pairs=6, checks=2, repeats=1))
    assert len([pair for pair in made["pairs"] if pair["kind"] == "models"]) == 6, "people can compare the images"
    assert all(pair["values"] == {} for pair in made["pairs"])
    assert "no metric is compared with people's choices: of a and b their judges differ: embedder" in caplog.text


def test_page_of_a_large_suite_is_made_of_chosen_cases(
    evaluations: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [cases.read_evaluation(name, evaluations[name]) for name in "ab"]
    everything, left_out = cases.shared_cases(two, 0)
    assert (len(everything), left_out) == (12, [])
    monkeypatch.setattr(cases, "_MOST_CASES", 5)
    chosen = [cases.shared_cases(two, seed)[0] for seed in (0, 0, 1)]
    assert [len(each) for each in chosen] == [5, 5, 5]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0].items() <= everything.items()
    monkeypatch.setattr(cases, "_MOST_LEFT_OUT", 2)
    fewer = dataclasses.replace(two[0], rows=two[0].rows.slice(0, 7))
    _, left_out = cases.shared_cases([fewer, two[1]], 0)
    assert [row["reason"] for row in left_out] == ["not in a", "not in a", "not in all evaluations"]
    assert left_out[2]["case"] == f"{12 - len(fewer.cases) - 2} more"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"conditions": "shuffled"}, "another subject's conditions"),
        ({"suite": Source("file:///other", "1" * 64, 1)}, "another suite"),
        ({"config": {"stages": ["1.0/0.5"], "split": "train"}}, "another split"),
        ({"config": {}}, "no images"),
        ({"suite": Source("file:///folder", "1" * 64)}, "another suite"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_errors(
    suite: Path, evaluations: dict[str, str], tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    other = write_evaluation(tmp_path / "other", suite, 0.5, **changes)
    with pytest.raises(InputError, match=problem):
        make(MakeConfig(a=evaluations["a"], b=str(other), out=str(tmp_path / "out")))


def test_changed_measurements_are_an_error(suite: Path, evaluations: dict[str, str], tmp_path: Path) -> None:
    other = write_evaluation(tmp_path / "other", suite, 0.5)
    (other / "measurements.parquet").write_bytes((Path(evaluations["a"]) / "measurements.parquet").read_bytes())
    with pytest.raises(InputError, match=r"not those of scores\.json"):
        make(MakeConfig(a=evaluations["a"], b=str(other), out=str(tmp_path / "out")))
    with pytest.raises(InputError):
        make(MakeConfig(a=evaluations["a"], b=str(tmp_path / "missing"), out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    "changes",
    [
        {"criteria": []},
        {"criteria": ["taste"]},
        {"criteria": ["overall", "overall"]},
        {"questions": {"taste": "?"}},
        {"questions": {"overall": " "}},
        {"d": "file:///d"},
        {"max_pairs": 0},
        {"max_side": 8},
    ],
)
def test_wrong_settings_are_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MakeConfig(a="file:///a", b="file:///b", out="file:///out", **changes)


def test_key_elsewhere_is_read_and_a_changed_one_is_refused(page: Path, key: Key, tmp_path: Path) -> None:
    moved = tmp_path / "key.json"
    moved.write_bytes((page / "pairs.json").read_bytes())
    assert read_key(str(moved)) == key
    document = json.loads(moved.read_text())
    document["pairs"][0]["first"], document["pairs"][0]["second"] = "b", "a"
    moved.write_text(json.dumps(document))
    with pytest.raises(InputError, match="changed"):
        read_key(str(moved))
    with pytest.raises(InputError, match="key of the page is missing"):
        read_key(str(tmp_path))
