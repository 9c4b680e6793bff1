"""What a page shows of finished evaluations: their images, and the references, prompts and photos of their suite."""

import hashlib
import io
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.data.images import decode
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.evaluation.measurements import MEASUREMENTS, SCHEMA, measured
from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.scores import SCORES, Scores
from lookalike.evaluation.suites import distinct
from lookalike.storage import Store, open_store
from pipelines.evaluate.photos import Photos
from pipelines.evaluate.suite_source import read_suite

_FIX = "evaluate the bundle again"
_OF_IMAGES = sorted({name for metric in METRICS for name in metric.labels})


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    name: str
    store: Store
    scores: Scores
    sha256: str
    """Hash of its measurements, whose header names bundle, suite and conditions: the same after it was moved."""
    subjects: dict[str, str]
    """Case -> subject, of each generated image."""
    values: dict[str, dict[str, float]]
    """Case -> metric -> value, of the images by the main denoising schedule."""

    def image(self, case: str) -> np.ndarray:
        """Read the image of ``case`` by the main schedule: uint8 [H, W, 3]. Raises InputError."""
        schedule = str(self.scores.config["stages"][0]).replace("/", "-")
        return decode(self.store.read(f"images/{schedule}/{case}.png"))


@dataclass(frozen=True)
class Shown:
    """The part of a case that judges see beside the images."""

    case: str
    subject: str
    subjects: frozenset[str]
    """All subjects that the image should show."""
    class_name: str
    prompt: str
    references: Sequence[np.ndarray]
    photo: np.ndarray | None
    """A real photo of the subject that is not among the references; None if the suite has no other."""


def read_evaluation(name: str, uri: str) -> Evaluated:
    """Read a finished evaluation.

    Raises InputError: it is missing or damaged, its measurements were changed, or it has shuffled conditions or no
    images.
    """
    store = open_store(uri)
    where = store.uri_of(SCORES)
    scores = Scores.from_json(store.read(SCORES), where)
    if scores.conditions != "right":
        fix = "name an evaluation with --conditions right"
        raise InputError("its images were generated with another subject's conditions", value=where, fix=fix)
    measurements, place = store.read(MEASUREMENTS), store.uri_of(MEASUREMENTS)
    sha256 = hashlib.sha256(measurements).hexdigest()
    if sha256 != scores.measurements_sha256:
        raise InputError("the measurements are not those of scores.json", value=place, fix=_FIX)
    with decoding("a table of measurements", place, fix=_FIX):
        table = measured(pq.read_table(io.BytesIO(measurements), schema=SCHEMA))
        rows = table.filter(pc.is_in(table["metric"], pa.array(_OF_IMAGES))).to_pylist()
    stages = scores.config.get("stages")
    if not rows or not isinstance(stages, list) or not stages:
        raise InputError("the evaluation has no images", value=where, fix=_FIX)
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        values.setdefault(row["case"], {})[row["metric"]] = row["value"]
    subjects = {row["case"]: row["subject"] for row in rows}
    return Evaluated(name, store, scores, sha256, subjects, values)


def shared_cases(evaluations: Sequence[Evaluated]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the subject of each case that all ``evaluations`` have, and the cases that only some have, with a reason.

    Raises InputError: they are of different suites or splits, or share no case.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        for what, ours, theirs in (
            ("suite", first.scores.suite.sha256, other.scores.suite.sha256),
            ("split", _split(first), _split(other)),
        ):
            if ours != theirs:
                raise InputError(
                    f"{first.name} and {other.name} were evaluated on another {what}: {ours} and {theirs}",
                    value=other.store.uri,
                    fix="evaluate both bundles on one suite",
                )
    shared = {case: subject for case, subject in first.subjects.items() if all(case in e.subjects for e in evaluations)}
    if not shared:
        names = ", ".join(evaluation.name for evaluation in evaluations)
        raise InputError(f"{names} share no case", value=first.store.uri, fix="evaluate them with the same settings")
    everything = {case for evaluation in evaluations for case in evaluation.subjects}
    return shared, [
        {"case": case, "reason": f"not in {', '.join(e.name for e in evaluations if case not in e.subjects)}"}
        for case in sorted(everything - shared.keys())
    ]


def shown_cases(evaluation: Evaluated, cases: Set[str]) -> Iterator[Shown | dict[str, str]]:
    """Yield what the suite has of each of ``cases``, or the case with the reason why it is left out.

    The order depends on the ids alone. Raises InputError: the suite is missing, or was changed since.
    """
    suite = read_suite(evaluation.scores)
    samples = {sample.sample_id: sample for sample in suite.pool}
    photos = Photos()
    for case in sorted(cases):
        sample = samples.get(case) or samples.get(sample_of(case))
        if sample is None:
            yield {"case": case, "reason": "the suite has no such sample"}
            continue
        own = [sample.target] if sample.target else list(distinct(suite.photos_for(sample), sample.references)[:1])
        try:
            if sample.damage:
                raise InputError(sample.damage, value=sample.sample_id, fix="curate the photos again")
            references, photo = photos.load(sample.references), photos.load(own)
        except InputError as error:
            yield {"case": case, "reason": f"its photos cannot be read: {error}"[:300]}
            continue
        named = (case, sample.subject, frozenset(sample.shown), sample.class_name, sample.prompt)
        yield Shown(*named, references, photo[0] if photo else None)


def sample_of(case: str) -> str:
    """The id of the sample behind a case: ``ID``, or ``ID#N`` if a prompt has several images."""
    sample, _, number = case.rpartition("#")
    return sample if sample and number.isdecimal() else case


def _split(evaluation: Evaluated) -> str:
    return str(evaluation.scores.config.get("split", "validation"))
