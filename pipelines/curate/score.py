"""Score: models answer for the images that the cheaper filters have kept, one raw shard at a time.

Images are read by range and decoded on threads, two batches ahead of the model. A batch has images of one raw shard in
the order of their bytes, so that a run that was killed asks in the same batches.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.annotators.base import Scorer, checked
from lookalike.annotators.captioner import Captioner
from lookalike.data.images import decode
from pipelines.actors import Columns
from pipelines.curate.answers import Answers
from pipelines.curate.filters import Photos, with_scores
from pipelines.curate.inputs import CAPTION
from pipelines.curate.screen import screen
from pipelines.curate.subject_rows import read_repeated, read_rows
from pipelines.curate.tables import read_table, write_table
from pipelines.curate.work import Group, IndexedShard, StageWork

_CAPTION_SIDE = 384  # px
_READERS = 16  # threads: a read of an object store waits for 20 to 50 ms
_BATCHES_AHEAD = 2  # decoded while the model computes
_PART_IMAGES = 4_096  # answers that a killed actor loses at most, besides a batch
_ASKED_COLUMNS = ("sha256", "shard", "unpacked", "offset", "length", "class_name")


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
        self._loaded: dict[str, Callable[..., list[Any]]] = {}  # by name

    def __call__(self, shard: IndexedShard) -> Columns:
        """Score the new images of one shard, filter by filter; return how many images the models were shown."""
        work, shown = self._work, 0
        last = list(work.inputs.models.values())[-1]  # the models write in this order
        if not work.dataset.exists(work.workspace.scores(last, shard.number)):
            rows = self._survivors(shard)
            for name, step in work.config.filters.scored():
                scores: dict[str, float] = {}
                if step.scorer is not None:
                    asked = rows.filter(pa.array(step.asks(Photos(rows))))
                    scores, new = self._ask(shard, asked, name, step.scorer)
                    shown += new
                rows = rows.filter(pa.array(~step.drop(with_scores(rows, scores))))
            if work.config.captioner is not None:
                uncaptioned = rows.filter(pc.equal(rows["caption"], ""))
                shown += self._ask(shard, uncaptioned, CAPTION, work.config.captioner)[1]
        return {"shard": np.array([shard.number]), "shown": np.array([shown])}

    def _survivors(self, shard: IndexedShard) -> pa.Table:
        """Return the rows of a shard that pass the filters without a model."""
        rows = read_rows(self._work, shard)
        kept = screen(rows, self._work.config.filters) == ""
        kept &= ~np.isin(rows["number"].to_numpy(), read_repeated(self._work, shard))
        return rows.filter(pa.array(kept))

    def _ask(
        self, shard: IndexedShard, rows: pa.Table, name: str, model: Scorer | Captioner
    ) -> tuple[dict[str, Any], int]:
        """Return the answers for ``rows`` by content hash, and how many are new; write the shard's table of scores."""
        store, workspace, revision = self._work.dataset, self._work.workspace, self._work.inputs.models[name]
        kind = pa.string() if isinstance(model, Captioner) else pa.float64()
        size = self._work.config.scoring.batch_images
        answers = Answers(store, workspace, f"{revision}/{size}", shard.id, kind)
        by_place = rows.select(_ASKED_COLUMNS).sort_by([("offset", "ascending"), ("sha256", "ascending")])
        asked = {row["sha256"]: row for row in by_place.to_pylist() if row["sha256"] not in answers.values}
        batches = [list(asked.values())[first : first + size] for first in range(0, len(asked), size)]
        new: dict[str, Any] = {}
        for batch, images in self._decoded(batches, model):
            if name not in self._loaded:
                self._loaded[name] = model.load(self._device)
            values = self._answer(self._loaded[name], model, batch, images)
            new.update(zip((row["sha256"] for row in batch), values, strict=True))
            if len(new) >= _PART_IMAGES:
                answers.add(new)
                new = {}
        answers.finish(new)
        values = pa.array([answers.values[content] for content in rows["sha256"].to_pylist()], kind)
        placed = rows.select(["subject_hash", "sha256"]).append_column("value", values)
        write_table(store, workspace.scores(revision, shard.number), placed)
        return answers.values, len(asked)

    def _decoded(
        self, batches: Sequence[list[dict[str, Any]]], model: Scorer | Captioner
    ) -> Iterator[tuple[list[dict[str, Any]], list[np.ndarray]]]:
        """Yield each batch of rows with its images, uint8 [H, W, 3]."""
        side = _CAPTION_SIDE if isinstance(model, Captioner) else model.side
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="decode")

        def begin(batch: list[dict[str, Any]]) -> list[Future[np.ndarray]]:
            return [pool.submit(self._read, row, side) for row in batch]

        begun: deque[tuple[list[dict[str, Any]], list[Future[np.ndarray]]]] = deque()
        try:
            for batch in batches:
                begun.append((batch, begin(batch)))
                if len(begun) > _BATCHES_AHEAD:
                    first, images = begun.popleft()
                    yield first, [image.result() for image in images]
            for first, images in begun:
                yield first, [image.result() for image in images]
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, row: dict[str, Any], side: int) -> np.ndarray:
        return decode(self._work.read_image(row), side)

    def _answer(
        self,
        loaded: Callable[..., list[Any]],
        model: Scorer | Captioner,
        batch: Sequence[dict[str, Any]],
        images: list[np.ndarray],
    ) -> list[str] | list[float]:
        """Return what the model says of a batch."""
        missing = 0 if self._device == "cpu" else self._work.config.scoring.batch_images - len(batch)
        # a GPU runs other kernels for another number of images; filled up, an answer does not depend on the others
        images = images + images[-1:] * missing
        if isinstance(model, Captioner):
            return [str(caption) for caption in loaded(images)[: len(batch)]]
        classes = [row["class_name"] for row in batch]
        scores = loaded(images, classes + classes[-1:] * missing)[: len(batch)]
        # rounded, so that a threshold decides the same on every machine
        return [round(checked(model, score), 3) for score in scores]
