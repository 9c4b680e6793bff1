"""Evaluations of one suite side by side, with paired differences; what cannot be compared is refused by name."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from lookalike.config import fingerprint
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.comparison import STEPS, Evaluated, compare, lines
from lookalike.evaluation.measurements import SCHEMA, UNREADABLE, Measurement, estimates, to_parquet
from lookalike.evaluation.paired import paired_difference
from lookalike.evaluation.scores import Calibration, Judge, Scores, Source

SUBJECTS = tuple(f"s{number:02d}" for number in range(12))


def _rows(shift: float, *, cases: int = 2, seed: int = 0, subjects: tuple[str, ...] = SUBJECTS) -> list[Measurement]:
    """Identity and loss of each case, whose subjects differ more than its models; real photos stand for the scale."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, subject in enumerate(subjects):
        for case in (f"{subject}-{index}" for index in range(cases)):
            own = 0.5 + 0.02 * number + 0.01 * float(rng.normal())
            rows += [
                Measurement(case, subject, "identity", own + shift),
                Measurement(case, subject, "loss_right", 0.2 + 0.001 * number),
                Measurement(f"{case}-photo", subject, "ceiling/identity", 0.9),
                Measurement(f"{case}-other", subject, "floor/identity", 0.3),
            ]
    return rows


def evaluated(
    name: str, rows: list[Measurement], change: Callable[[Scores], Scores] = lambda scores: scores
) -> Evaluated:
    """An evaluation with these rows."""
    of = {"bundle": fingerprint(name), "suite": "s" * 64, "conditions": "right", "seed": 0}
    columns = {
        "unit": [0] * len(rows),
        **{field: [getattr(row, field) for row in rows] for field in ("case", "subject", "metric", "value")},
    }
    data = to_parquet(pa.table(columns, schema=SCHEMA), of)
    values = {"image": 0.5}
    scores = Scores(
        bundle=Source(f"file:///{name}", of["bundle"]),
        suite=Source("file:///suite", "s" * 64, 1),
        conditions="right",
        metrics=estimates(data, 0, name),
        embedder="an embedder",
        config={"seed": 0, "split": "validation", "stages": ["preset"], "steps": 20},
        measurements_sha256=hashlib.sha256(data).hexdigest(),
        judge=Judge("i" * 64, {"identity": Calibration(values, fingerprint(values), "an embedder")}),
    )
    return Evaluated(name, change(scores), data)


def test_differences_are_paired_by_case() -> None:
    """Subjects differ by .24 and models by .01: only pairing finds the difference."""
    ours, theirs = evaluated("a", _rows(0.0)), evaluated("b", _rows(0.01))
    result = compare([ours, theirs])
    row = {row.metric: row for row in result.rows}["identity"]
    assert row.differences[0] is None
    difference = row.differences[1]
    assert difference is not None
    assert difference.estimate == paired_difference(theirs.rows("identity"), ours.rows("identity"))
    assert difference.estimate.mean == pytest.approx(0.01)
    assert difference.clear
    assert row.estimates[0].low < row.estimates[1].mean < row.estimates[0].high  # type: ignore[union-attr]
    assert (difference.estimate.n, difference.subjects) == (24, 12)


def test_another_reference_turns_the_sign() -> None:
    both = [evaluated("a", _rows(0.0)), evaluated("b", _rows(0.01))]
    (row,) = (row for row in compare(both, against=1).rows if row.metric == "identity")
    assert row.differences[1] is None
    assert row.differences[0].estimate.mean == pytest.approx(-0.01)  # type: ignore[union-attr]


def test_noise_is_not_clear_and_needs_more_subjects() -> None:
    result = compare([evaluated("a", _rows(0.0)), evaluated("b", _rows(0.001, seed=1))])
    (row,) = (row for row in result.rows if row.metric == "identity")
    difference = row.differences[1]
    assert difference is not None
    assert not difference.clear
    assert difference.needed is not None
    assert difference.needed > 12
    assert difference.found_from is not None
    assert abs(difference.estimate.mean) < difference.found_from < 0.05
    known = [count for count in difference.steps if count is not None]
    assert len(known) == len(STEPS)
    assert known == sorted(known, reverse=True)  # a larger difference needs fewer


def test_smallest_difference_that_is_found_needs_the_subjects_that_there_are() -> None:
    from lookalike.evaluation.estimates import subjects_needed

    ours, theirs = evaluated("a", _rows(0.0)), evaluated("b", _rows(0.0, seed=1))
    (row,) = (row for row in compare([ours, theirs]).rows if row.metric == "identity")
    found_from = row.differences[1].found_from  # type: ignore[union-attr]
    assert found_from is not None
    base = {each["case"]: each["value"] for each in ours.rows("identity").to_pylist()}
    pairs = theirs.rows("identity").to_pylist()
    values, names = np.array([row["value"] - base[row["case"]] for row in pairs]), [row["subject"] for row in pairs]
    assert subjects_needed(values, names, found_from) == 12
    assert (subjects_needed(values, names, 0.95 * found_from) or 0) > 12


def test_real_photos_have_no_difference() -> None:
    result = compare([evaluated("a", _rows(0.0)), evaluated("b", _rows(0.01))])
    rows = {row.metric: row for row in result.rows}
    assert {"position/identity", "ceiling/identity", "floor/identity"} <= rows.keys()
    for name in ("ceiling/identity", "floor/identity"):
        assert rows[name].differences == (None, None)
        assert None not in rows[name].estimates
    names = [row.metric for row in result.rows]
    assert names.index("loss_right") < names.index("identity") < names.index("position/identity")
    assert names[-2:] == ["ceiling/identity", "floor/identity"]


def test_positions_have_a_paired_difference() -> None:
    result = compare([evaluated("a", _rows(0.0)), evaluated("b", _rows(0.06))])
    row = {row.metric: row for row in result.rows}["position/identity"]
    difference, (ours, theirs) = row.differences[1], row.estimates
    assert difference is not None
    assert ours is not None
    assert theirs is not None
    assert difference.estimate.mean == pytest.approx(theirs.mean - ours.mean)
    assert difference.clear
    assert ours.high > theirs.low, "both intervals alone do not tell them apart"
    assert (difference.estimate.n, difference.subjects, difference.needed) == (24, 12, None)
    assert "difference +0.1" in "\n".join(lines(result))


def test_metric_that_only_one_model_has_is_shown_without_a_difference() -> None:
    more = [*_rows(0.01), *(Measurement(f"{s}-0", s, "clip_t", 0.3) for s in SUBJECTS)]
    result = compare([evaluated("a", _rows(0.0)), evaluated("b", more)])
    (row,) = (row for row in result.rows if row.metric == "clip_t")
    assert row.estimates[0] is None
    assert row.estimates[1] is not None
    assert row.differences == (None, None)


def test_cases_that_only_one_model_has_are_left_out_and_said() -> None:
    result = compare([evaluated("a", _rows(0.0)), evaluated("b", _rows(0.01, subjects=SUBJECTS[:5]))])
    (row,) = (row for row in result.rows if row.metric == "identity")
    assert row.differences[1].subjects == 5  # type: ignore[union-attr]
    assert any("5 subjects only" in note for note in result.notes)
    result = compare([evaluated("a", _rows(0.0, subjects=SUBJECTS[:5])), evaluated("b", _rows(0.01))])
    assert any("do not share all cases of identity, loss_right" in note for note in result.notes)
    result = compare([evaluated("a", _rows(0, subjects=SUBJECTS[:5])), evaluated("b", _rows(0, subjects=SUBJECTS[5:]))])
    assert all(row.differences == (None, None) for row in result.rows)


def test_values_that_are_not_finite_are_null_in_the_document() -> None:
    broken = [*_rows(0.01), Measurement("s00-0", "s00", "clip_i", float("nan"))]
    ours = [*_rows(0.0), Measurement("s00-0", "s00", "clip_i", 0.5)]
    result = compare([evaluated("a", ours), evaluated("b", broken)])
    assert any("undefined" in line for line in lines(result))
    assert not any("nan" in line for line in lines(result))
    document = result.to_dict()
    text = json.dumps(document, allow_nan=False)
    (row,) = (row for row in document["rows"] if row["metric"] == "clip_i")
    assert row["estimates"][1]["mean"] is None
    assert "identity" in text


def test_equal_models_have_no_difference() -> None:
    result = compare([evaluated("a", _rows(0.0)), evaluated("b", _rows(0.0))])
    (row,) = (row for row in result.rows if row.metric == "identity")
    assert row.differences[1].estimate.mean == 0  # type: ignore[union-attr]
    assert row.differences[1].needed is None  # type: ignore[union-attr]
    assert not row.differences[1].clear  # type: ignore[union-attr]


def test_unreadable_cases_are_no_values() -> None:
    rows = [*_rows(0.0), Measurement("x", "s00", f"{UNREADABLE}cut", 1.0)]
    assert all(not row.metric.startswith(UNREADABLE) for row in compare([evaluated(n, rows) for n in "ab"]).rows)


def test_order_of_models_changes_no_value() -> None:
    a, b, c = evaluated("a", _rows(0.0)), evaluated("b", _rows(0.01)), evaluated("c", _rows(0.02, seed=3))
    one, other = compare([a, b, c]), compare([a, c, b])
    for first, second in zip(one.rows, other.rows, strict=True):
        assert first.differences[1] == second.differences[2]
        assert first.estimates[2] == second.estimates[1]


def test_settings_that_differ_are_said() -> None:
    slower = evaluated("b", _rows(0.0), lambda scores: replace(scores, config=scores.config | {"steps": 50}))
    result = compare([evaluated("a", _rows(0.0)), slower])
    assert result.settings == {"steps": (20, 50)}
    assert "The evaluations differ in steps: 20; 50." in result.notes


OTHER = Judge("i" * 64, {"identity": Calibration({"image": 0.6}, fingerprint({"image": 0.6}))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, suite=Source("file:///t", "t" * 64, 2)), r"their suites differ: .*suite v0001.*t v0002"),
        (lambda s: replace(s, conditions="shuffled"), "their conditions differ: right; shuffled"),
        (lambda s: replace(s, config=s.config | {"seed": 7}), "their seed differs: 0; 7"),
        (lambda s: replace(s, config=s.config | {"split": "train"}), "their split differs: validation; train"),
        (lambda s: replace(s, judge=OTHER), "their judges differ: on the calibration images identity"),
        (
            lambda s: replace(s, protocols={"identity": {"references": "all"}}),
            "their protocols of identity differ: references given; all",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(change: Callable[[Scores], Scores], message: str) -> None:
    ours = evaluated("a", _rows(0.0), lambda s: replace(s, protocols={"identity": {"references": "given"}}))
    with pytest.raises(InputError, match=f"b cannot be compared with a: {message}") as error:
        compare([ours, evaluated("b", _rows(0.0), change)])
    assert error.value.fix.startswith("evaluate both")


def test_one_model_or_two_of_one_name_are_refused() -> None:
    one = evaluated("a", _rows(0.0))
    with pytest.raises(ConfigError, match="two models or more"):
        compare([one])
    with pytest.raises(ConfigError, match="two models have the name 'a'"):
        compare([one, one])


def test_lines_name_each_model_its_values_and_what_is_needed() -> None:
    result = compare([evaluated("a", _rows(0.0)), evaluated("better", _rows(0.01, seed=1))])
    text = "\n".join(lines(result))
    assert "identity\n  a " in text
    assert "difference +0.0" in text
    assert "subjects find it" in text
    assert "nan" not in text
