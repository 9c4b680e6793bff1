"""What a page shows of finished evaluations: their images, and the references, prompts and photos of their suite."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.data.images import decode
from lookalike.data.permutation import Permutation
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.evaluation.measurements import MEASUREMENTS, SCHEMA
from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.scores import SCORES, Scores
from lookalike.evaluation.suites import distinct
from lookalike.storage import Store, open_store
from pipelines.evaluate.photos import Photos
from pipelines.evaluate.suite_source import read_suite

_FIX = "evaluate the bundle again"
_MOST_CASES = 65_536  # among which the pairs of a page are chosen
_MOST_LEFT_OUT = 1_000  # cases that are named
_OF_IMAGES = sorted({name for metric in METRICS for name in metric.labels})


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    name: str
    store: Store
    scores: Scores
    sha256: str
    """Hash of its measurements, whose header names bundle, suite and conditions: the same after it was moved."""
    rows: pa.Table
    """Columns case, subject, metric and value of the images by the main denoising schedule."""

    @cached_property
    def cases(self) -> pa.Table:
        """Case and subject of each generated image, in the order of the cases."""
        return self.rows.group_by(["case", "subject"]).aggregate([]).sort_by("case")

    def values_of(self, cases: Iterable[str]) -> dict[str, dict[str, float]]:
        """Case -> metric -> value, of some cases."""
        values: dict[str, dict[str, float]] = {case: {} for case in cases}
        for row in self.rows.filter(pc.is_in(self.rows["case"], pa.array(values, pa.string()))).to_pylist():
            values[row["case"]][row["metric"]] = row["value"]
        return values

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
        of_images = pc.field("metric").isin(_OF_IMAGES)
        rows = pq.read_table(io.BytesIO(measurements), schema=SCHEMA, filters=of_images).drop_columns("unit")
    stages = scores.config.get("stages")
    if not len(rows) or not isinstance(stages, list) or not stages:
        raise InputError("the evaluation has no images", value=where, fix=_FIX)
    return Evaluated(name, store, scores, sha256, rows)


def shared_cases(evaluations: Sequence[Evaluated], seed: int) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the subject of each case that all ``evaluations`` have, and the cases that only some have, with a reason.

    Of more than 65,536 shared cases as many are chosen by ``seed``. Of more than 1,000 others the number is said.

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
    known = [evaluation.cases["case"].combine_chunks() for evaluation in evaluations]
    shared = first.cases
    for cases in known[1:]:
        shared = shared.filter(pc.is_in(shared["case"], value_set=cases))
    if not len(shared):
        names = ", ".join(evaluation.name for evaluation in evaluations)
        raise InputError(f"{names} share no case", value=first.store.uri, fix="evaluate them with the same settings")
    left_out = _left_out(evaluations, known, shared["case"].combine_chunks())
    if len(shared) > _MOST_CASES:
        shared = shared.take(np.sort(Permutation(len(shared), (seed,))(np.arange(_MOST_CASES))))
    return dict(zip(*(shared[name].to_pylist() for name in ("case", "subject")), strict=True)), left_out


def _left_out(evaluations: Sequence[Evaluated], known: Sequence[pa.Array], shared: pa.Array) -> list[dict[str, str]]:
    """The cases that only some evaluations have, in their order, with the reason."""
    everything = pc.unique(pa.concat_arrays(known))
    others = everything.filter(pc.invert(pc.is_in(everything, value_set=shared)))
    others = others.take(pc.array_sort_indices(others))
    first = others.slice(0, _MOST_LEFT_OUT)
    has = [pc.is_in(first, value_set=cases).to_pylist() for cases in known]
    left_out = []
    for case, row in zip(first.to_pylist(), zip(*has, strict=True), strict=True):
        without = [each.name for each, own in zip(evaluations, row, strict=True) if not own]
        left_out.append({"case": case, "reason": f"not in {', '.join(without)}"})
    more = len(others) - len(first)
    return [*left_out, {"case": f"{more} more", "reason": "not in all evaluations"}] if more else left_out


def shown_cases(evaluation: Evaluated, cases: Set[str]) -> Iterator[Shown | dict[str, str]]:
    """Yield what the suite has of each of ``cases``, or the case with the reason why it is left out.

    The order depends on the ids alone. Raises InputError: the suite is missing, or was changed since.
    """
    suite = read_suite(evaluation.scores)
    wanted = {*cases, *map(sample_of, cases)}
    samples = {sample.sample_id: sample for sample in suite.pool if sample.sample_id in wanted}
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
    """The id of the sample behind a case: ``ID``, or ``ID@N`` if a prompt has several images (earlier: ``ID#N``)."""
    sample, _, number = case.replace("#", "@").rpartition("@")
    return case[: len(sample)] if sample and number.isdecimal() else case


def _split(evaluation: Evaluated) -> str:
    return str(evaluation.scores.config.get("split", "validation"))
