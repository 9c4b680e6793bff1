"""Score: models look at what the cheaper filters have left, one raw shard at a time, and what they say is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.annotators.base import Scorer, checked
from lookalike.annotators.captioner import Captioner
from lookalike.config import fingerprint
from lookalike.data.images import decode_at_least
from lookalike.storage import ObjectInfo
from pipelines.actors import Columns
from pipelines.curate.duplicates import read_duplicates_of_shard
from pipelines.curate.filters import SCORE, Photos
from pipelines.curate.rows import IMAGE_SCHEMA, partition_range
from pipelines.curate.tables import read_span, read_table, write_table
from pipelines.curate.work import StageWork

_CAPTION_SIDE = 384  # px
_EVERYTHING = partition_range(0, 1)

Answer = Callable[[np.ndarray, Mapping[str, Any]], Any]
"""From an image's pixels and its row to what a model says of it."""


def scores_key(work: StageWork, revision: str, unit: int) -> str:
    """Where lies beside the rows of a raw shard what the model of that revision says of those that it was asked for."""
    return work.inputs.stage_key("scores", f"{fingerprint(revision)[:16]}/{unit:06d}.parquet")


def scored(work: StageWork) -> dict[str, tuple[ObjectInfo, ...]]:
    """The tables of scores of all raw shards, by the revision of their model, once every shard is scored."""
    found = {info.key: info for info in work.dataset.list(work.inputs.stage_key("scores", ""))}
    return {
        revision: tuple(found[scores_key(work, revision, unit)] for unit in work.inputs.units)
        for revision in work.inputs.models.values()
    }


def read_scores(work: StageWork, revision: str, span: tuple[int, int]) -> dict[str, Any]:
    """What the model of that revision says of the images of a range of subjects, by content hash."""
    found: dict[str, Any] = {}
    for info in work.scores[revision]:
        table = read_span(work.dataset, info, span)
        found.update(zip(table["sha256"].to_pylist(), table["value"].to_pylist(), strict=True))
    return found


def with_scores(rows: pa.Table, scores: Mapping[str, float]) -> Photos:
    """The rows with their scores, NaN where there is none."""
    values = [scores.get(content, float("nan")) for content in rows["sha256"].to_pylist()]
    return Photos(rows.append_column(SCORE, pa.array(values, pa.float64())))


class ShardScorer:
    """Holds the models, each made when the first image is to be shown to it; scores one raw shard per call."""

    def __init__(self, work: StageWork) -> None:
        self._work = work
        self._device = work.config.actors.prepare()
        self._answers: dict[str, Answer] = {}

    def __call__(self, unit: int) -> Columns:
        """Score what is new of one shard, filter by filter; returns how many times a model was shown an image."""
        rows, shown = self._survivors(unit), 0
        for _, step in self._work.config.filters.scored():
            scores: dict[str, float] = {}
            if step.scorer is not None:
                asked = rows.filter(pa.array(step.asks(Photos(rows))))
                scores, new = self._ask(unit, asked, _question_of(step.scorer))
                shown += new
            rows = rows.filter(pa.array(~step.drop(with_scores(rows, scores))))
        if self._work.config.captioner is not None:
            silent = rows.filter(pc.equal(rows["caption"], ""))
            shown += self._ask(unit, silent, _question_for_caption(self._work.config.captioner))[1]
        return {"shard": np.array([unit]), "shown": np.array([shown])}

    def _survivors(self, unit: int) -> pa.Table:
        """The rows of a shard that pass the filters which ask no model."""
        work = self._work
        rows = read_span(work.dataset, work.rows[unit], _EVERYTHING).cast(IMAGE_SCHEMA)
        for _, step in work.config.filters.steps("image"):
            rows = rows.filter(pa.array(~step.drop(Photos(rows)), pa.bool_()))
        for _ in work.config.filters.steps("content"):
            repeated = read_duplicates_of_shard(work, unit)
            places = zip(rows["offset"].to_pylist(), rows["key"].to_pylist(), strict=True)
            rows = rows.filter(pa.array([place not in repeated for place in places], pa.bool_()))
        return rows

    def _ask(self, unit: int, rows: pa.Table, question: "_Question") -> tuple[dict[str, Any], int]:
        """What is said of ``rows``, by content hash, and how much of it is new. New answers join the shard's table."""
        store, key = self._work.dataset, self._work.inputs.answers_key(question.revision, unit)
        schema = pa.schema([("sha256", pa.string()), ("value", question.dtype)])
        known = read_table(store, key) if store.exists(key) else schema.empty_table()
        answers = dict(zip(known["sha256"].to_pylist(), known["value"].to_pylist(), strict=True))
        for row in rows.to_pylist():
            if row["sha256"] not in answers:
                pixels, _ = decode_at_least(self._work.read_image(row), question.side)
                answers[row["sha256"]] = self._model(question)(pixels, row)
        if len(answers) > len(known):
            columns = {"sha256": list(answers), "value": list(answers.values())}
            write_table(store, key, pa.table(columns, schema).sort_by([("sha256", "ascending")]))
        said = pa.array([answers[content] for content in rows["sha256"].to_pylist()], question.dtype)
        placed = rows.select(["subject_hash", "sha256"]).append_column("value", said)
        write_table(store, scores_key(self._work, question.revision, unit), placed)
        return answers, len(answers) - len(known)

    def _model(self, question: "_Question") -> Answer:
        if question.revision not in self._answers:
            self._answers[question.revision] = question.load(self._device)
        return self._answers[question.revision]


@dataclass(frozen=True)
class _Question:
    """What a model is asked: one of these for each table of answers."""

    revision: str
    side: int  # px
    dtype: pa.DataType
    load: Callable[[str], Answer]


def _question_of(scorer: Scorer) -> _Question:
    def load(device: str) -> Answer:
        score = scorer.load(device)
        # rounded, a threshold decides the same on every machine
        return lambda pixels, row: round(checked(scorer, score(pixels, row["class_name"])), 3)

    return _Question(scorer.revision, scorer.side, pa.float64(), load)


def _question_for_caption(captioner: Captioner) -> _Question:
    def load(device: str) -> Answer:
        describe = captioner.load(device)
        return lambda pixels, row: describe(pixels)

    return _Question(captioner.revision, _CAPTION_SIDE, pa.string(), load)
