"""Score: models answer for the images that the cheaper filters have kept, one raw shard at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.annotators.base import Scorer, checked
from lookalike.annotators.captioner import Captioner
from lookalike.data.images import decode
from pipelines.actors import Columns
from pipelines.curate.filters import Photos, with_scores
from pipelines.curate.screen import screen
from pipelines.curate.tables import read_table, write_table
from pipelines.curate.work import Group, IndexedShard, StageWork, read_rows

_CAPTION_SIDE = 384  # px


def gather_scores(work: StageWork, group: Group) -> Columns:
    """Write the answers for the images of a group of raw shards to the shuffle of each model, by subject hash."""
    for revision in sorted(set(work.inputs.models.values())):
        shuffle = work.score_shuffle(revision)
        if not shuffle.is_written(1, group.number):
            keys = (work.workspace.scores(revision, shard.number) for shard in group.shards)
            shuffle.write(group.number, pa.concat_tables([read_table(work.dataset, key) for key in keys]))
    return {"group": np.array([group.number])}


class ShardScorer:
    """An actor that holds the models, each loaded for its first image; each call scores one raw shard."""

    def __init__(self, work: StageWork) -> None:
        self._work = work
        self._device = work.config.actors.prepare()
        self._loaded: dict[str, Callable[..., Any]] = {}  # by revision

    def __call__(self, shard: IndexedShard) -> Columns:
        """Score the new images of one shard, filter by filter; return how many images the models were shown."""
        rows, shown = self._survivors(shard), 0
        for _, step in self._work.config.filters.scored():
            scores: dict[str, float] = {}
            if step.scorer is not None:
                asked = rows.filter(pa.array(step.asks(Photos(rows))))
                scores, new = self._ask(shard, asked, step.scorer)
                shown += new
            rows = rows.filter(pa.array(~step.drop(with_scores(rows, scores))))
        if self._work.config.captioner is not None:
            uncaptioned = rows.filter(pc.equal(rows["caption"], ""))
            shown += self._ask(shard, uncaptioned, self._work.config.captioner)[1]
        return {"shard": np.array([shard.number]), "shown": np.array([shown])}

    def _survivors(self, shard: IndexedShard) -> pa.Table:
        """Return the rows of a shard that pass the filters without a model."""
        rows = read_rows(self._work, shard)
        kept = screen(rows, self._work.config.filters) == ""
        kept &= ~np.isin(rows["number"].to_numpy(), self._work.read_repeated(shard))
        return rows.filter(pa.array(kept))

    def _ask(self, shard: IndexedShard, rows: pa.Table, model: Scorer | Captioner) -> tuple[dict[str, Any], int]:
        """Return the answers for ``rows`` by content hash, and how many are new; add these to the shard's table."""
        revision = model.revision
        store, key = self._work.dataset, self._work.workspace.answers(revision, shard.id)
        dtype = pa.string() if isinstance(model, Captioner) else pa.float64()
        schema = pa.schema([("sha256", pa.string()), ("value", dtype)])
        known = read_table(store, key) if store.exists(key) else schema.empty_table()
        answers = dict(zip(known["sha256"].to_pylist(), known["value"].to_pylist(), strict=True))
        for row in rows.to_pylist():
            if row["sha256"] not in answers:
                if revision not in self._loaded:
                    self._loaded[revision] = model.load(self._device)
                answers[row["sha256"]] = self._answer(model, self._loaded[revision], row)
        if len(answers) > len(known):
            columns = {"sha256": list(answers), "value": list(answers.values())}
            write_table(store, key, pa.table(columns, schema).sort_by([("sha256", "ascending")]))
        values = pa.array([answers[content] for content in rows["sha256"].to_pylist()], dtype)
        placed = rows.select(["subject_hash", "sha256"]).append_column("value", values)
        write_table(store, self._work.workspace.scores(revision, shard.number), placed)
        return answers, len(answers) - len(known)

    def _answer(self, model: Scorer | Captioner, loaded: Callable[..., Any], row: dict[str, Any]) -> str | float:
        data = self._work.read_image(row)
        if isinstance(model, Captioner):
            return str(loaded(decode(data, _CAPTION_SIDE)))
        pixels = decode(data, model.side)
        # rounded, so that a threshold decides the same on every machine
        return round(checked(model, loaded(pixels, row["class_name"])), 3)
