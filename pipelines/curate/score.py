"""Score: models answer for the images that the cheaper filters have kept, one raw shard at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.annotators.base import Scorer, checked
from lookalike.annotators.captioner import Captioner
from lookalike.data.images import decode_at_least
from lookalike.storage import ObjectInfo
from pipelines.actors import Columns
from pipelines.curate.filters import Photos, with_scores
from pipelines.curate.tables import read_table, write_table
from pipelines.curate.work import StageWork

_CAPTION_SIDE = 384  # px

Answer = Callable[[np.ndarray, Mapping[str, Any]], Any]
"""A function from an image's pixels (uint8 [H, W, 3]) and its row to the model's answer."""


def scored(work: StageWork) -> dict[str, tuple[ObjectInfo, ...]]:
    """Return the tables of scores of all raw shards, by the revision of their model, once every shard is scored."""
    tables = {info.key: info for info in work.dataset.list(work.workspace.prefix("scores"))}
    return {
        revision: tuple(tables[work.workspace.scores(revision, unit)] for unit in work.inputs.units)
        for revision in work.inputs.models.values()
    }


class ShardScorer:
    """An actor that holds the models, each loaded for its first image; each call scores one raw shard."""

    def __init__(self, work: StageWork) -> None:
        self._work = work
        self._device = work.config.actors.prepare()
        self._answers: dict[str, Answer] = {}

    def __call__(self, unit: int) -> Columns:
        """Score the new images of one shard, filter by filter; return how many images the models were shown."""
        rows, shown = self._survivors(unit), 0
        for _, step in self._work.config.filters.scored():
            scores: dict[str, float] = {}
            if step.scorer is not None:
                asked = rows.filter(pa.array(step.asks(Photos(rows))))
                scores, new = self._ask(unit, asked, _question_of(step.scorer))
                shown += new
            rows = rows.filter(pa.array(~step.drop(with_scores(rows, scores))))
        if self._work.config.captioner is not None:
            uncaptioned = rows.filter(pc.equal(rows["caption"], ""))
            shown += self._ask(unit, uncaptioned, _question_for_caption(self._work.config.captioner))[1]
        return {"shard": np.array([unit]), "shown": np.array([shown])}

    def _survivors(self, unit: int) -> pa.Table:
        """Return the rows of a shard that pass the filters without a model."""
        rows, repeated = self._work.read_screened(unit), self._work.read_duplicates((unit, unit + 1), "unit")
        places = zip(*(rows[name].to_pylist() for name in ("shard", "offset", "key")), strict=True)
        return rows.filter(pa.array([place not in repeated for place in places], pa.bool_()))

    def _ask(self, unit: int, rows: pa.Table, question: "_Question") -> tuple[dict[str, Any], int]:
        """Return the answers for ``rows`` by content hash, and how many are new; add these to the shard's table."""
        store, key = self._work.dataset, self._work.workspace.answers(question.revision, unit)
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
        values = pa.array([answers[content] for content in rows["sha256"].to_pylist()], question.dtype)
        placed = rows.select(["subject_hash", "sha256"]).append_column("value", values)
        write_table(store, self._work.workspace.scores(question.revision, unit), placed)
        return answers, len(answers) - len(known)

    def _model(self, question: "_Question") -> Answer:
        if question.revision not in self._answers:
            self._answers[question.revision] = question.load(self._device)
        return self._answers[question.revision]


@dataclass(frozen=True)
class _Question:
    """What a model is asked; one for each table of answers."""

    revision: str
    side: int  # px
    dtype: pa.DataType
    load: Callable[[str], Answer]


def _question_of(scorer: Scorer) -> _Question:
    def load(device: str) -> Answer:
        score = scorer.load(device)
        # rounded, so that a threshold decides the same on every machine
        return lambda pixels, row: round(checked(scorer, score(pixels, row["class_name"])), 3)

    return _Question(scorer.revision, scorer.side, pa.float64(), load)


def _question_for_caption(captioner: Captioner) -> _Question:
    def load(device: str) -> Answer:
        describe = captioner.load(device)
        return lambda pixels, row: describe(pixels)

    return _Question(captioner.revision, _CAPTION_SIDE, pa.string(), load)
